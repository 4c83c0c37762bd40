"""Small data for the tests of this folder."""

import io
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from cmdist.data.preparing.sources.base import Source


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


def photo(seed, width, height, mode="RGB"):
    """A smooth random picture, as a PIL image."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cropped(data, size):
    """What ADM makes of an encoded image, written out by hand: numpy slices instead of PIL's crop."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.BOX)
    scale = size / min(image.size)
    pixels = np.array(image.resize(tuple(round(side * scale) for side in image.size), Image.BICUBIC))
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


def tar_of(path, members):
    """A tar of (name, bytes or TarInfo)."""
    with tarfile.open(path, "w:gz" if str(path).endswith("gz") else "w") as archive:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def link(name, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def png_of_rows(pixels, rows=None, interlaced=False):
    """A PNG of RGB pixels whose compressed stream, sound in itself, ends after so many rows (of each pass)."""
    height, width, _ = pixels.shape
    steps = ADAM7 if interlaced else [(0, 0, 1, 1)]
    lines = [b"\0" + row.tobytes() for x, y, dx, dy in steps for row in pixels[y::dy, x::dx] if row.size]
    lines = lines if rows is None else lines[: rows * len(lines) // height]
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# first column and row, and steps, of the passes of an interlaced PNG
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
