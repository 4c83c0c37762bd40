"""Bytes of an image member <-> pixels. Only these image formats are ever decoded, whatever a member is called.

What becomes of unusual images, here and nowhere else: grey, palette, CMYK and YCbCr images are converted to RGB; an alpha channel is
dropped; of an animation the first picture is taken; a rotation in the EXIF data is ignored, as in ADM. Images with more than 8 bits per
channel, of more than MAX_PIXELS pixels (by their header, before anything is decoded) or MAX_BYTES bytes are refused.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmdist.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "PPM")
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "ppm", "pgm")
RAW = "raw"  # the extension of members that are nothing but pixels, in the order (H, W, C)
ENCODINGS = ("png", "webp", "jpg", RAW)  # those that we write
MODES = {1: "L", 3: "RGB"}  # by channels
MAX_PIXELS = 100_000_000  # ImageNet's largest image has 61 million
MAX_BYTES = 2**28
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class BadImageError(DataError):
    """One image that cannot be decoded; the reader may replace it, preparation may drop it."""


def decode(data: bytes, size: int, channels: int, raw: bool = False) -> NDArray[np.uint8]:
    """Pixels (size, size, channels) of an encoded image, or of a `raw` one.

    Raises BadImageError if it cannot be decoded, DataError if it has another size; the size is looked at before any pixel is decoded.
    """
    if raw:
        if len(data) != size * size * channels:
            raise DataError(f"has {len(data)} bytes, not the {size}x{size}x{channels} of a raw image")
        return np.frombuffer(data, np.uint8).reshape(size, size, channels)
    # np.asarray(image) does the same by way of a dictionary that describes the array, which takes 3 % of a small image's decoding
    return np.frombuffer(load(data, MODES[channels], size).tobytes(), np.uint8).reshape(size, size, channels)


def load(data: bytes, mode: str, size: int | None = None) -> Image.Image:
    """The decoded image as 'L' or 'RGB', converted as this module's docstring says.

    Raises BadImageError; DataError, before anything is decoded, if it is not a square of `size` where that is given.
    """
    if len(data) > MAX_BYTES:
        raise BadImageError(f"is not a readable image (it has {len(data)} bytes, {MAX_BYTES} are allowed)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # nothing to close: it is memory
        if size is not None and image.size != (size, size):
            raise DataError(f"is {image.width}x{image.height}, not {size}x{size}")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width}x{image.height} pixels, {MAX_PIXELS} in all are allowed")
        if image.mode not in _CONVERTIBLE:
            raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
        if image.mode == mode:
            image.load()
            return image
        return image.convert(mode)
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise BadImageError(f"is not a readable image ({_short(error)})") from error


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone. Raises BadImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception as error:
        raise BadImageError(f"is not a readable image ({_short(error)})") from error


def encode(pixels: NDArray[np.uint8], encoding: str, quality: int = 95) -> bytes:
    """Pixels (H, W, 1) or (H, W, 3) in one of ENCODINGS; `quality` is that of jpg, the only lossy one."""
    if encoding == RAW:
        return pixels.tobytes()
    image, buffer = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG")
    elif encoding == "webp":
        # the fastest effort: more makes photos 12 % smaller and takes 10 to 25 times as long; grey becomes RGB, without loss
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    else:
        assert encoding == "jpg"
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "no image format that is allowed here" if text.startswith("cannot identify") else text[:200]
