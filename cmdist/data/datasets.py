"""Where images come from: each function gives a `Source` that pipelines/prepare_data.py turns into shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmdist.data.decode import EXTENSIONS, FORMATS, to_mode
from cmdist.errors import DataError


@dataclass(frozen=True)
class Source:
    """Images that can be read one by one in any order, so that shuffling needs no memory and shards can be written apart."""

    name: str
    image_size: int
    channels: int
    transform: str  # how pixels were made; stored in the index, because variants shift FID
    count: int
    image: Callable[[int], NDArray[np.uint8]]  # i -> (H, W, C)
    labels: NDArray[np.int64] | None = None  # (count,), None: unlabelled
    classes: tuple[str, ...] = ()  # names, by label


def digits() -> Source:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 grey, ten classes."""
    from sklearn.datasets import load_digits  # here, since it takes seconds to import and only preparation needs it

    data = load_digits()
    images = np.round(data.images[..., None] * (255 / 16)).astype(np.uint8)  # (n, 8, 8, 1), 0..16 -> 0..255
    return Source(
        name="digits",
        image_size=8,
        channels=1,
        transform="round(v * 255 / 16)",
        count=len(images),
        image=images.__getitem__,
        labels=data.target.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )


def folder(path: str | Path, size: int | None = None) -> Source:
    """One's own images below `path` as RGB; sub-folders, if there are any, are the classes, in alphabetical order.

    With `size` every image is cropped to its centre square and resized as in ADM; without, all must be squares of one size.
    Raises DataError for a folder without images, or with some images outside of the class folders.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, with labels as sub-folders if there are any")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS and p.is_file())
    if not files:
        raise DataError(f"{root} holds no images; files that end in {', '.join(EXTENSIONS)} are read")
    names = [p.relative_to(root).parts for p in files]
    classes = tuple(sorted({parts[0] for parts in names if len(parts) > 1}))
    bare = [p for p, parts in zip(files, names, strict=True) if len(parts) == 1]
    if classes and bare:
        raise DataError(f"{bare[0]} has no label: either all images of {root} lie in sub-folders, which name their classes, or none does")
    side = size or min(_read(files[0]).size)

    def image(i: int) -> NDArray[np.uint8]:
        opened = _read(files[i])
        if size:
            opened = centre_crop(opened, side)
        elif opened.size != (side, side):
            raise DataError(f"{files[i]} is {opened.width}x{opened.height}, not {side}x{side}: give --size to crop and resize all images")
        return np.asarray(opened)

    return Source(
        name=root.resolve().name,
        image_size=side,
        channels=3,
        transform="ADM centre crop: box halvings, then bicubic" if size else "none",
        count=len(files),
        image=image,
        labels=np.array([classes.index(parts[0]) for parts in names], np.int64) if classes else None,
        classes=classes,
    )


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image at `size` pixels: halved by boxes while both sides allow it, then bicubic (ADM's variant)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_mode(image, "RGB")
    except Exception as error:  # decoders raise almost anything on damaged files
        raise DataError(f"{path} cannot be read as an image: {error}") from error
