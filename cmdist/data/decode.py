"""Bytes of an image member -> pixels. Only these image formats are ever decoded, whatever a member is called."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmdist.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "PPM")
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "ppm", "pgm")
MODES = {1: "L", 3: "RGB"}  # by channels
_CONVERTIBLE = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


class BadImageError(DataError):
    """One image that cannot be decoded; the reader may replace it."""


def decode(data: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """Pixels (size, size, channels) of an encoded image.

    Raises BadImageError if it cannot be decoded, DataError if it has another size; the size is looked at before any pixel is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            right_size = image.size == (size, size)
            pixels = np.asarray(to_mode(image, MODES[channels])) if right_size else None
            found = f"{image.width}x{image.height}"
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise BadImageError(f"is not a readable image ({_short(error)})") from error
    if pixels is None:
        raise DataError(f"is {found}, not {size}x{size}")
    return pixels.reshape(size, size, channels)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone. Raises BadImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception as error:
        raise BadImageError(f"is not a readable image ({_short(error)})") from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of pixels (H, W, 1) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image as 'L' or 'RGB': alpha is dropped, the first picture of an animation taken; 16-bit and float images are refused."""
    if image.mode not in _CONVERTIBLE:
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
    if image.mode == mode:
        image.load()
        return image
    return image.convert(mode)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "no image format that is allowed here" if text.startswith("cannot identify") else text[:200]
