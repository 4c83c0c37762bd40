"""Points A.2(c), (f) and (h): parts of pictures that are missing, EXIF orientation, transparency."""

import io
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from cmdist.data.decode import BadImageError, decode
from cmdist.data.preparing.completeness import missing
from cmdist.data.preparing.sources.files import folder, zipped
from cmdist.data.preparing.sources.imagenet import imagenet
from cmdist.data.preparing.sources.pictures import ADM, LAID, OWN, TURNED, Reading, load
from conftest_data import cropped, encoded, photo, png_of_rows, tar_of

NOISY = Image.fromarray(
    (np.asarray(photo(3, 200, 160)).astype(int) + np.random.default_rng(0).integers(-9, 10, (160, 200, 3)))
    .clip(0, 255)
    .astype(np.uint8)
)
JPEGS = [
    {},
    {"quality": 95},
    {"optimize": True},
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 7},
    {"subsampling": 0},
]


def zeroed(data, share, length):
    place = int(len(data) * share)
    return data[:place] + bytes(length) + data[place + length :]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("rows", [0.5, 0.99])
def test_a2c_a_png_without_all_of_its_rows_is_bad(rows, interlaced):
    pixels = np.asarray(photo(0, 33, 100))
    whole, part = (png_of_rows(pixels, count, interlaced) for count in (None, int(rows * 100)))
    with Image.open(io.BytesIO(part)) as image:
        image.load()  # the decoder says nothing
    assert missing(whole) is None and np.array_equal(load(whole, ADM)[0], pixels)
    with pytest.raises(BadImageError, match=r"^is not a readable image \(it is incomplete: \d+ bytes of pixels, not "):
        load(part, ADM)


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a2c_a_jpeg_that_ends_early_with_an_end_mark_is_bad(options, share):
    whole = encoded(NOISY, "JPEG", **options)
    part = whole[: int(len(whole) * share)] + b"\xff\xd9"
    assert decode(encoded(NOISY.crop((0, 0, 160, 160)), "JPEG", **options), 160, 3).shape == (160, 160, 3)
    assert missing(whole) is None and np.array_equal(load(whole, ADM)[0], Image.open(io.BytesIO(whole)))
    with pytest.raises(BadImageError, match=r"^is not a readable image \(it is (incomplete|damaged): "):
        load(part, ADM)


@pytest.mark.parametrize("options", [options for options in JPEGS if "progressive" not in options])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a2c_a_jpeg_with_a_stretch_of_zeros_is_bad(options, share):
    whole = encoded(NOISY, "JPEG", **options)
    with pytest.raises(BadImageError, match=r"^is not a readable image \(it is (incomplete|damaged): "):
        load(zeroed(whole, share, 300), ADM)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEGS)
def test_a2c_sound_pictures_are_not_taken_for_damaged_ones(options, mode):
    pictures = [photo(i, *shape) for i, shape in enumerate([(8, 8), (17, 300), (300, 17), (120, 90)])]
    pictures += [Image.new("RGB", (400, 300), colour) for colour in ("white", "black", (12, 200, 31))]
    corner = Image.new("RGB", (320, 320), "white")
    corner.paste(NOISY.crop((0, 0, 60, 60)), (10, 20))
    for picture in [*pictures, corner, NOISY]:
        data = encoded(picture.convert(mode), "JPEG", **options)
        assert [missing(d) for d in (data, data + b"what cameras append", data[:-2] + b"\xff" + data[-2:])] == [
            None
        ] * 3
        assert missing(encoded(picture.convert("RGB" if mode == "CMYK" else mode), "PNG")) is None


def test_a2c_every_source_of_encoded_images_refuses_the_half_of_one(tmp_path):
    half = encoded(NOISY)[: len(encoded(NOISY)) // 2] + b"\xff\xd9"
    tar = tar_of(tmp_path / "n00000001.tar", [("a.JPEG", encoded(NOISY)), ("b.JPEG", half)])
    source = imagenet(tar_of(tmp_path / "train.tar", [("n00000001.tar", tar.read_bytes())]), 64, 1)
    assert np.array_equal(source.image(0), cropped(encoded(NOISY), 64))
    with pytest.raises(BadImageError, match=r"n00000001/b\.JPEG is not a readable image \(it is incomplete: its code"):
        source.image(1)


# orientation


def with_orientation(image, value, kind="JPEG"):
    exif = Image.Exif()
    exif[274] = value
    return encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


UPRIGHT = {  # as the TIFF standard has it: where row 0 and column 0 of what is stored are to be seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a2f_own_photos_are_turned_as_exif_says(value, kind):
    data = with_orientation(photo(0, 40, 24), value, kind)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    image, treated = load(data, OWN)
    assert np.array_equal(image, UPRIGHT[value](stored)) and treated == ((TURNED,) if value > 1 else ())
    for reading in (ADM, Reading(upright=False, background=(255, 255, 255))):
        assert np.array_equal(load(data, reading)[0], stored)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a2f_exif_data_that_cannot_be_parsed_turn_nothing(exif):
    data = encoded(photo(0, 40, 24), exif=exif)
    assert load(data, OWN)[0].size == (40, 24)


def test_a2f_folder_and_zip_turn_and_named_sets_do_not(tmp_path):
    data = with_orientation(photo(0, 80, 64), 6)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(data)
    with ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.jpg", data)
    tar = tar_of(tmp_path / "n00000001.tar", [("a.JPEG", data)])
    named = imagenet(tar_of(tmp_path / "train.tar", [("n00000001.tar", tar.read_bytes())]), 64, 1)
    turned = np.asarray(Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270).crop((0, 8, 64, 72)))
    assert np.array_equal(folder(tmp_path / "in", 64).image(0), turned)
    assert np.array_equal(zipped(tmp_path / "in.zip", 64).image(0), turned)
    assert zipped(tmp_path / "in.zip", 64).read(0).treated == (TURNED,)
    assert np.array_equal(named.image(0), cropped(data, 64))


# transparency


def drawing(mode):
    """Black, everywhere; opaque on the left, half in the middle, nothing on the right."""
    alpha = np.repeat([255, 128, 0], 4).astype(np.uint8)
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[..., 3] = alpha
    return Image.fromarray(pixels).convert(mode) if mode != "P" else Image.fromarray(pixels).quantize(8)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP")])
def test_a2h_what_is_transparent_shows_the_background(mode, kind):
    data = encoded(drawing(mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    for background in ((255, 255, 255), (200, 100, 0)):
        image, treated = load(data, Reading(background=background))
        pixels = np.asarray(image).astype(int)
        assert treated == (LAID,)
        assert (pixels[:, 0] == 0).all() and (pixels[:, 8:] == background).all()
        assert np.abs(pixels[:, 4] - np.array(background) * (1 - 128 / 255)).max() <= 1
    assert (np.asarray(load(data, ADM)[0]) == 0).all() or mode == "P"  # ADM drops alpha


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a2h_one_colour_may_be_transparent_in_every_mode(mode):
    image = Image.new("L", (8, 8), 0).convert(mode)
    index = image.getpixel((0, 0))
    data = encoded(image, "PNG", transparency=index)
    shown, treated = load(data, OWN)
    assert (np.asarray(shown) == 255).all() and treated == (LAID,)


def test_a2h_a_picture_that_is_opaque_is_as_it_is_and_not_counted():
    opaque = photo(0, 30, 20).convert("RGBA")
    shown, treated = load(encoded(opaque, "PNG"), OWN)
    assert np.array_equal(shown, opaque.convert("RGB")) and treated == ()
