"""An encoded image as the square of RGB pixels that is stored: turned, laid on a background, cropped and resized."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cmdist.data.decode import MAX_PIXELS, BadImageError, opened, readable
from cmdist.data.preparing.completeness import missing
from cmdist.data.preparing.sources.base import Picture
from cmdist.errors import DataError

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
TURNED, LAID = "turned", "transparent"  # what may be done to a picture, as index.json counts it
_ORIENTATION = 274  # the EXIF tag; its values say how a picture that was stored otherwise is turned upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Reading:
    """How bytes become RGB pixels; the defaults are ADM's."""

    upright: bool = False  # turned as the EXIF data say
    background: Colour | None = None  # what shows through transparent parts; None: alpha is dropped
    max_pixels: int = MAX_PIXELS


def html(colour: Colour) -> str:
    """As '#rrggbb'."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


ADM = Reading()
OWN = Reading(upright=True, background=WHITE)  # of one's own pictures


def load(data: bytes, reading: Reading) -> tuple[Image.Image, tuple[str, ...]]:
    """The image as RGB, and what was done to it. Raises BadImageError, also for one of which a part is missing."""
    with readable():
        image: Image.Image = opened(data, reading.max_pixels)
        turn = _TURNS.get(_orientation(image)) if reading.upright else None
        treated = []
        if reading.background is not None and image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getchannel("A").tobytes().strip(b"\xff"):
                treated.append(LAID)
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*reading.background, 255)), image)
        image = image.convert("RGB")
        if reason := missing(data):
            raise ValueError(reason)
        if turn is not None:
            image = image.transpose(turn)
            treated.append(TURNED)
    return image, tuple(treated)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # what the EXIF data of some cameras makes of a parser; the pixels are none the worse
        return 1


def transform_of(size: int | None, enlarge: bool = False) -> str:
    """What the index says of how the images were made."""
    if size is None:
        return "none"
    return "ADM centre crop: box halvings, then bicubic" + ("; smaller images are enlarged" if enlarge else "")


def square(data: bytes, where: str, size: int, crop: bool, enlarge: bool, reading: Reading = ADM) -> Picture:
    """An encoded image as RGB pixels (size, size, 3): cropped as in ADM, or, without `crop`, as it is.

    Raises BadImageError, naming `where`, if it cannot be decoded, is smaller than `size` without `enlarge`, or would
    have more than the allowed pixels enlarged; DataError for another size without `crop`.
    """
    try:
        image, treated = load(data, reading)
    except BadImageError as error:
        raise BadImageError(f"{where} {error}") from error
    if not crop:
        if image.size != (size, size):
            raise DataError(
                f"{where} is {image.width}x{image.height}, not {size}x{size}: give --size to crop and resize all images"
            )
    elif min(image.size) < size and not enlarge:
        raise BadImageError(
            f"{where} is {image.width}x{image.height}, smaller than the {size} pixels asked for: "
            "give a smaller --size, "
            "or --enlarge to enlarge such images as ADM does"
        )
    else:
        width, height = (side * size // min(image.size) for side in image.size)
        if min(image.size) < size and width * height > reading.max_pixels:
            raise BadImageError(
                f"{where} is {image.width}x{image.height}, which enlarged to {size} pixels would be {width}x{height}: "
                f"{reading.max_pixels} in all are allowed"
            )
        image = centre_crop(image, size)
    return Picture(np.asarray(image), treated)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image at `size` pixels:
    halved by boxes while both sides allow it, then bicubic (ADM's variant).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
