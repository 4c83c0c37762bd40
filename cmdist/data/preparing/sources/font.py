"""The colour bitmaps of a font, such as Noto Color Emoji. The only door to fontTools."""

from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

from cmdist.data.decode import BadImageError
from cmdist.data.preparing.sources.base import Pixels, Source
from cmdist.data.preparing.sources.pictures import WHITE, Colour, Reading, centre_crop, html, load
from cmdist.errors import DataError

HELD_OUT = 100  # of so many different glyphs one is in the test split


def font(path: str | Path, size: int | None = None, split: str = "train", background: Colour = WHITE) -> Source:
    """Its bitmap glyphs (tables CBDT and CBLC) as unlabelled RGB, in the order of their names, each once.

    A glyph is laid on `background`, in the middle of a square, and resized as in ADM. Every hundredth is kept for the
    `test` split. Raises DataError for a file that is no font, or one without such glyphs.
    """
    from fontTools.ttLib import TTFont  # here, since only this source needs it

    try:
        with TTFont(path, lazy=True) as file:
            strikes = file["CBDT"].strikeData if "CBDT" in file else []
            glyphs = {name: glyph.imageData for strike in strikes[:1] for name, glyph in strike.items()}
            version = file["name"].getDebugName(5) or ""
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except Exception as error:  # of what is damaged fontTools says almost anything
        raise DataError(f"{path} cannot be read as a font ({type(error).__name__}); a .ttf file is needed") from error
    if not glyphs:
        raise DataError(f"{path} has no colour bitmaps (table CBDT), as Noto Color Emoji's .ttf has")
    side = max(max(_drawn(data, name, path, background).size) for name, data in sorted(glyphs.items())[:16])
    target = side if size is None else size
    different: dict[bytes, Pixels] = {}
    for name, data in sorted(glyphs.items()):
        pixels = np.asarray(centre_crop(_squared(_drawn(data, name, path, background), background), target))
        different.setdefault(pixels.tobytes(), pixels)
    images = [p for i, p in enumerate(different.values()) if (i % HELD_OUT == HELD_OUT - 1) == (split == "test")]
    return Source(
        name=f"{Path(path).stem}" if split == "train" else f"{Path(path).stem}-{split}",
        image_size=target,
        channels=3,
        transform=f"on {html(background)}, squared, box halvings, then bicubic; {version}".rstrip("; "),
        count=len(images),
        image=images.__getitem__,
        fingerprint=xxhash.xxh3_128_hexdigest(b"".join(data for _, data in sorted(glyphs.items()))),
        notes=(f"{len(glyphs)} glyphs, {len(different)} different; every {HELD_OUT}th is in the test split",),
    )


def _drawn(data: bytes, name: str, path: str | Path, background: Colour) -> Image.Image:
    try:
        return load(data, Reading(background=background))[0]
    except BadImageError as error:
        raise DataError(f"{path}: glyph {name} {error}") from error


def _squared(image: Image.Image, background: Colour) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
