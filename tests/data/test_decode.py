import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from cmdist.data import decode as module
from cmdist.data.decode import BadImageError, decode, encode, load
from cmdist.errors import DataError
from conftest_data import encoded, photo


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
def test_lossless_encodings_give_every_byte_back(encoding, channels):
    images = [
        np.random.default_rng(0).integers(0, 256, (9, 9, channels), np.uint8),
        np.asarray(photo(1, 64, 64))[..., :channels],
    ]
    images += [np.full((8, 8, channels), value, np.uint8) for value in (0, 1, 254, 255)]
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    images.append(np.concatenate([ramp, ramp[::-1], ramp.T.reshape(16, 16, 1)], axis=2)[..., :channels])
    for pixels in images:
        data = encode(pixels, encoding)
        decoded = decode(data, len(pixels), channels, raw=encoding == "raw")
        assert decoded.shape == pixels.shape and np.array_equal(decoded, pixels)
        assert encode(pixels, encoding) == data


def test_jpg_is_near_and_as_pillow_has_it():
    pixels = np.asarray(photo(0, 64, 64))
    data = encode(pixels, "jpg", quality=95)
    assert data == encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)
    assert 0 < np.abs(decode(data, 64, 3).astype(int) - pixels).max() <= 12
    assert len(encode(pixels, "jpg", quality=50)) < len(data)


def test_a_raw_image_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"^has 47 bytes, not the 4x4x3 of a raw image$"):
        decode(bytes(47), 4, 3, raw=True)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG")],
)
def test_unusual_modes_become_rgb_as_pillow_converts_them(mode, kind):
    data = encoded(photo(0, 40, 30).convert(mode), kind)
    assert np.array_equal(load(data, "RGB"), Image.open(io.BytesIO(data)).convert("RGB"))


def test_alpha_is_dropped():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 4), np.uint8)
    assert np.array_equal(load(encoded(Image.fromarray(pixels), "PNG"), "RGB"), pixels[..., :3])


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_picture_is_taken(kind, options):
    first, second = photo(0, 20, 20), photo(1, 20, 20)
    data = encoded(first, kind, save_all=True, append_images=[second], duration=50, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert np.array_equal(load(data, "RGB"), first)


def test_rotation_in_exif_is_ignored():
    exif = Image.Exif()
    exif[274] = 6
    assert load(encoded(photo(0, 40, 20), "JPEG", exif=exif), "RGB").size == (40, 20)


def deep_png(colour, channels):
    """A PNG with 16 bits per channel, all zero."""
    header = struct.pack(">2I5B", 4, 4, 16, colour, 0, 0, 0)
    return (
        PNG
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(4 * (1 + 8 * channels))))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        *(
            lambda colour=colour, channels=channels: deep_png(colour, channels)
            for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4))
        ),
        lambda: b"P5 2 2 65535\n" + bytes(8),
        lambda: b"P6 2 2 65535\n" + bytes(24),
        lambda: b"P6 2 2 1023\n" + bytes(24),
        lambda: b"P3 1 1 1023\n0 0 0",
    ],
)
def test_more_than_eight_bits_are_refused(data):
    with Image.open(io.BytesIO(data())) as image:
        image.load()  # a sound one
    with pytest.raises(BadImageError, match=r"^is not a readable image \(more than 8 bits per channel\)$"):
        load(data(), "RGB")


@pytest.mark.parametrize("data", [b"", b"GIF89a", encoded(photo(0, 4, 4), "TIFF"), b"%PDF-1.4"])
def test_other_formats_are_refused(data):
    with pytest.raises(
        BadImageError, match=r"^is not a readable image \(no image format that is allowed here: PNG, JPEG, WebP, PPM\)$"
    ):
        load(data, "RGB")


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WAVEfmt ", b"RIFF", b"P", b"P6 4", b"Portrait"]
)
def test_what_only_begins_like_an_image_is_refused(data):
    for read in (lambda: load(data, "RGB"), lambda: decode(data, 4, 3), lambda: module.size_of(data)):
        with pytest.raises(BadImageError, match=r"^is not a readable image \(.+\)$"):
            read()


def test_of_several_pictures_of_a_camera_the_first_is_taken():
    first = photo(0, 32, 32)
    data = encoded(first, "MPO", save_all=True, append_images=[photo(1, 32, 32)])
    assert np.array_equal(load(data, "RGB"), Image.open(io.BytesIO(encoded(first))))


PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height):
    """A PNG of some kilobytes whose header says width x height, and whose pixels are all there."""

    packer, row = zlib.compressobj(9), bytes(1 + width // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_small_file_of_many_pixels_is_refused_by_its_header():
    bomb, larger = png_of(10_001, 10_000), png_of(16_000, 16_000)
    assert len(larger) < 100_000
    tracemalloc.start()
    with pytest.raises(
        BadImageError, match=r"^is not a readable image \(it has 10001x10000 pixels, 100000000 in all are allowed\)$"
    ):
        load(bomb, "RGB")
    with pytest.raises(BadImageError, match="it has 16000x16000 pixels"):  # beyond Pillow's own limit, too
        load(larger, "RGB")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert load(png_of(800, 600), "RGB").size == (800, 600)
    with pytest.raises(DataError, match=r"^is 800x600, not 64x64$"):
        decode(png_of(800, 600), 64, 3)


def test_a_file_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 50)
    with pytest.raises(BadImageError, match=r"^is not a readable image \(it has \d+ bytes, 50 are allowed\)$"):
        load(encoded(photo(0, 20, 20)), "RGB")
