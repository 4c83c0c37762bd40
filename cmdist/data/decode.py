"""Bytes of an image member <-> pixels. Only these image formats are ever decoded, whatever a member is called.

What becomes of unusual images: grey, palette, CMYK and YCbCr images are converted to RGB; of an animation the first
picture is taken; an alpha channel is dropped and a rotation in the EXIF data ignored, as in ADM (preparation can do
otherwise, see preparing/sources/pictures.py). Images with more than 8 bits per channel, of more than MAX_PIXELS pixels
(by their header, before anything is decoded) or MAX_BYTES bytes are refused.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cmdist.errors import DataError

# By the first bytes; Image.open does more for each image than its pixels need (previews of cameras, say): 5 % of a JPEG
# of 64x64.
FORMATS: dict[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    b"\x89PNG": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIFF": WebPImageFile,
    b"P": PpmImageFile,
}
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "ppm", "pgm")
RAW = "raw"  # the extension of members that are nothing but pixels, in the order (H, W, C)
ENCODINGS = ("png", "webp", "jpg", RAW)  # those that we write
MODES = {1: "L", 3: "RGB"}  # by channels
MAX_PIXELS = 100_000_000  # ImageNet's largest image has 61 million
MAX_BYTES = 2**28
T = TypeVar("T")
_MAY_BE_DEEP = (PngImageFile, PpmImageFile)
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class BadImageError(DataError):
    """One image that cannot be decoded; the reader may replace it, preparation may drop it."""


def decode(data: bytes, size: int, channels: int, raw: bool = False) -> NDArray[np.uint8]:
    """Pixels (size, size, channels) of an encoded image, or of a `raw` one.

    Raises BadImageError if it cannot be decoded, DataError if it has another size; the size is looked at before any
    pixel is decoded.
    """
    if raw:
        if len(data) != size * size * channels:
            raise DataError(f"has {len(data)} bytes, not the {size}x{size}x{channels} of a raw image")
        return np.frombuffer(data, np.uint8).reshape(size, size, channels)
    # np.asarray(image) does the same by way of a dictionary that describes the array, which takes 3 % of a small
    # image's decoding
    return np.frombuffer(_decoded(data, MODES[channels], size, _packed), np.uint8).reshape(size, size, channels)


def load(data: bytes, mode: str) -> Image.Image:
    """The decoded image as 'L' or 'RGB', converted as this module's docstring says. Raises BadImageError."""
    return _decoded(data, mode, None, _loaded)


def _packed(image: Image.Image) -> bytes:
    return image.tobytes()  # loads what is not loaded


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _decoded(data: bytes, mode: str, size: int | None, take: Callable[[Image.Image], T]) -> T:
    """What `take`, which decodes, makes of the image; its size is looked at before, where one is given."""
    with readable():
        image = opened(data, None)
        if size is not None and image.size != (size, size):
            raise DataError(f"is {image.width}x{image.height}, not {size}x{size}")
        _check_header(image, MAX_PIXELS)
        return take(image if image.mode == mode else image.convert(mode))


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """What decoders raise inside becomes a BadImageError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise BadImageError(f"is not a readable image ({_short(error)})") from error


def opened(data: bytes, max_pixels: int | None = MAX_PIXELS) -> ImageFile.ImageFile:
    """The image by its header, which is refused here if nothing of it is to be decoded (`max_pixels` None: not yet)."""
    if len(data) > MAX_BYTES:
        raise BadImageError(f"is not a readable image (it has {len(data)} bytes, {MAX_BYTES} are allowed)")
    image = _open(data)
    if max_pixels is not None:
        _check_header(image, max_pixels)
    return image


def _open(data: bytes) -> ImageFile.ImageFile:
    """The image by its header alone; nothing of it to close, since it is memory."""
    for start, kind in FORMATS.items():
        if data.startswith(start):
            return kind(io.BytesIO(data))
    raise ValueError("no image format that is allowed here: PNG, JPEG, WebP, PPM")


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(f"it has {image.width}x{image.height} pixels, {max_pixels} in all are allowed")
    if image.mode not in _CONVERTIBLE or (isinstance(image, _MAY_BE_DEEP) and _is_deep(image)):
        raise ValueError("more than 8 bits per channel")


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone.
    Raises BadImageError, also for what `decode` would refuse by the header.
    """
    with readable():
        return opened(data).size


def encode(pixels: NDArray[np.uint8], encoding: str, quality: int = 95) -> bytes:
    """Pixels (H, W, 1) or (H, W, 3) in one of ENCODINGS; `quality` is that of jpg, the only lossy one."""
    if encoding == RAW:
        return pixels.tobytes()
    image, buffer = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG")
    elif encoding == "webp":
        # the fastest effort: more makes photos 12 % smaller and takes 10 to 25 times as long; grey becomes RGB, without
        # loss
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    else:
        assert encoding == "jpg"
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would reduce its channels of up to 16 bits to 8 without a word: as PNG and PPM files have them."""
    for _, _, _, parameters in image.tile:
        for parameter in parameters if isinstance(parameters, tuple) else (parameters,):
            if (";16" in parameter) if isinstance(parameter, str) else isinstance(parameter, int) and parameter > 255:
                return True
    return False


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
