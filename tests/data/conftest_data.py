"""Small data for the tests of this folder."""

import io

import numpy as np
from PIL import Image

from cmdist.data.sources.base import Source


def numbered(count, size=4, channels=1, labelled=True):
    """Image i says so: its first two pixels are i % 256 and i // 256, and its label is i % 10."""

    def image(i):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, channels), np.uint8)
        pixels[0, 0], pixels[0, 1] = i % 256, i // 256
        return pixels

    labels = np.arange(count, dtype=np.int64) % 10 if labelled else None
    return Source("numbered", size, channels, "none", count, image, labels, tuple("0123456789") if labelled else ())


def png(width, height=None):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height or width), (10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()
