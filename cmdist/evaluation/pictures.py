"""Sample grids and side-by-side pictures."""

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cmdist.errors import DataError
from cmdist.system import storage
from cmdist.system.typed import array, arrays_of

ROWS = 4  # of a sample grid that is kept beside figures
_GAP = 2  # pixels between images, before scaling the picture's text


def columns(classes: int) -> int:
    """Columns of a sample grid: one for each class if they fit, else 10."""
    return classes if 1 < classes <= 20 else 10


def grid(images: Tensor, columns: int, scale: int = 1, between: int = 255) -> Image.Image:
    """A picture of uint8 images (n,C,H,W), row by row in `columns`, each pixel a square of scale x scale, `between`
    them; C is 1 or 3.
    """
    n, channels, height, width = images.shape
    assert images.dtype == torch.uint8 and channels in (1, 3) and n > 0
    rows = -(-n // columns)
    cell = (height * scale + _GAP, width * scale + _GAP)
    canvas = torch.full((channels, rows * cell[0] + _GAP, columns * cell[1] + _GAP), between, dtype=torch.uint8)
    large = images.cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    for number, image in enumerate(large):
        top, left = (number // columns) * cell[0] + _GAP, (number % columns) * cell[1] + _GAP
        canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return alone(canvas)


def alone(image: Tensor) -> Image.Image:
    """An image uint8 (C,H,W) as a picture; C is 1 or 3."""
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().cpu().numpy())


def side_by_side(
    blocks: Sequence[tuple[str, Tensor]], columns: int, heads: Sequence[str] = (), scale: int | None = None
) -> Image.Image:
    """Titled blocks of uint8 images (n,C,H,W) below each other in common columns, with `heads` above the columns.

    Without `scale` images are enlarged to about 40 pixels.
    """
    assert blocks and (not heads or len(heads) == columns)
    width = blocks[0][1].shape[3]
    scale = scale or max(1, 40 // width)
    title_font, head_font = ImageFont.load_default(size=16), ImageFont.load_default(size=14)
    pictures = [(title, grid(images, columns, scale).convert("RGB")) for title, images in blocks]
    title_height, head_height, margin = 26, 22 if heads else 0, 8
    needed = max(int(title_font.getlength(title)) for title, _ in pictures)
    size = (
        max(needed, *(picture.width for _, picture in pictures)) + 2 * margin,
        head_height + sum(title_height + picture.height + margin for _, picture in pictures) + margin,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        centre = margin + _GAP + column * (width * scale + _GAP) + width * scale / 2
        draw.text((centre, margin + 2), head, fill="black", font=head_font, anchor="mt")
    top = head_height + margin
    for title, picture in pictures:
        draw.text((margin, top), title, fill="black", font=title_font)
        canvas.paste(picture, (margin, top + title_height))
        top += title_height + picture.height + margin
    return canvas


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write(stem: str, images: Tensor, columns: int) -> bytes:
    """Keep a grid of uint8 images (n,C,H,W) as STEM.png, and the images as STEM.npz for comparisons; the picture."""
    picture = png(grid(images, columns, max(1, 40 // images.shape[3])))
    storage.write(f"{stem}.png", picture)
    storage.write(f"{stem}.npz", pack(images, columns))
    return picture


def for_page(images: Tensor, columns: int, most: int = 64) -> tuple[bytes, str]:
    """A grid, clear between its images, as a small file for a web page, and its kind:
    up to `most` pixels a side PNG, else reduced WebP.
    """
    size, kind = images.shape[2:], "png"
    if max(size) > most:
        small = F.interpolate(images.float(), scale_factor=most / max(size), mode="bicubic", antialias=True)
        images, kind = small.round().clamp(0, 255).to(torch.uint8), "webp"
    scale = max(1, 40 // images.shape[3])
    picture = grid(images, columns, scale)
    picture.putalpha(grid(torch.full_like(images[:, :1], 255), columns, scale, between=0))
    buffer = io.BytesIO()
    picture.convert("RGBA").save(buffer, format=kind, quality=88)
    return buffer.getvalue(), kind


def pack(images: Tensor, columns: int) -> bytes:
    """Images uint8 (n,C,H,W) of a grid as an npz file, for `unpack`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.cpu().numpy(), columns=np.int64(columns))
    return buffer.getvalue()


def unpack(data: bytes, where: str = "the pictures") -> tuple[Tensor, int]:
    """The images and columns that `pack` was given. Raises DataError, naming `where`."""
    arrays = arrays_of(data, where)
    try:
        images, columns = array(arrays, "images", "u", (None, None, None, None)), array(arrays, "columns", "i", ())
        if images.dtype != np.uint8 or images.shape[1] not in (1, 3) or not images.size or not 0 < columns <= 1000:
            raise ValueError("it holds no grid of grey or RGB images")
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}") from error
    return torch.from_numpy(images), int(columns)


def read(stem: str) -> tuple[Tensor, int]:
    """The images and columns of STEM.npz. Raises FileNotFoundError, DataError."""
    return unpack(storage.read(f"{stem}.npz"), f"{stem}.npz")
