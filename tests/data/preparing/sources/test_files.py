import errno
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmdist.data.decode import BadImageError
from cmdist.data.preparing.sources import zips
from cmdist.data.preparing.sources.base import stat_of
from cmdist.data.preparing.sources.digits import digits
from cmdist.data.preparing.sources.files import folder, zipped
from cmdist.data.preparing.sources.pictures import centre_crop
from cmdist.errors import DataError
from conftest_data import cropped, encoded, photo, png


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, data = digits(), load_digits()
    assert (source.count, source.image_size, source.channels) == (1797, 8, 1)
    pixels = np.stack([source.image(i) for i in range(1797)])
    assert pixels.dtype == np.uint8 and pixels.shape == (1797, 8, 8, 1)
    assert (
        np.array_equal(np.unique(pixels), np.round(np.arange(17) * 255 / 16))
        and pixels.min() == 0
        and pixels.max() == 255
    )
    assert np.array_equal(np.round(pixels[..., 0] * (16 / 255)), data.images)
    assert np.array_equal(source.labels, data.target) and source.classes == tuple("0123456789")


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/b/2.JPG", "cat/3.webp", "dog/readme.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        elif path.suffix == ".png":
            path.write_bytes(png(6))
        else:
            Image.new("L", (6, 6), 99).save(path)
    source = folder(tmp_path)
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 0, 1] and source.image_size == 6
    assert np.array_equal(source.image(1), np.full((6, 6, 3), 99)) and source.image(2)[0, 0].tolist() == [10, 20, 30]


LAYOUTS = [
    (["cat/0.png", "cat/b/2.png", "dog/1.png"], ("cat", "dog"), [0, 0, 1]),
    (["pics/cat/0.png", "pics/dog/1.png"], ("cat", "dog"), [0, 1]),  # what "compress folder" makes
    (["a/b/cat/x/0.png", "a/b/cat/y/1.png", "a/b/dog/2.png"], ("cat", "dog"), [0, 0, 1]),
    (["pics/cat/0.png", "pics/cat/1.png"], ("cat",), [0, 0]),  # they never part
    (["pics/cat/0.png", "pics/cat/more/1.png"], ("cat",), [0, 0]),
    (["pics/0.png", "pics/cat/1.png"], ("pics",), [0, 0]),
]


def write_files(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(6))
    return root


@pytest.mark.parametrize(("names", "classes", "labels"), LAYOUTS)
def test_classes_are_the_folders_at_which_paths_part(tmp_path, names, classes, labels):
    source = folder(write_files(tmp_path / "in", names))
    assert source.classes == classes and source.labels.tolist() == labels
    for change in (
        lambda name: name,
        "./{}".format,
        lambda name: name.replace("/", "\\"),
        lambda name: ".\\" + name.replace("/", "//"),
    ):
        source = zipped(zip_of(tmp_path / "a.zip", {change(name): png(6) for name in names}))
        assert source.classes == classes and source.labels.tolist() == labels


def test_images_beside_a_wrapped_folder_have_no_label(tmp_path):
    for names in (["pics/cat/0.png", "1.png"], ["pics\\cat\\0.png", "./1.png"]):
        with pytest.raises(
            DataError, match=r"a\.zip/(\./)?1\.png has no label: either all images of .*a\.zip lie in sub-folders"
        ):
            zipped(zip_of(tmp_path / "a.zip", dict.fromkeys(names, png(6))))


def test_a_flat_folder_has_no_labels_and_size_crops(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30, 20))
    (tmp_path / "b.png").write_bytes(png(8, 9))
    source = folder(tmp_path, size=4)
    assert source.labels is None and source.classes == () and source.image_size == 4 and "ADM" in source.transform
    assert all(np.array_equal(source.image(i), np.full((4, 4, 3), [10, 20, 30])) for i in range(2))


@pytest.mark.parametrize("shape", [(64, 64), (37, 91), (200, 65), (33, 32), (20, 70)])
def test_centre_crop_is_boxes_then_bicubic(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), np.uint8))
    want, size = image, 32
    while min(want.size) >= 64:
        pixels = np.asarray(want).astype(np.float64)
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        if pixels.shape[0] % 2 == 0 and pixels.shape[1] % 2 == 0:  # halving even sides is the mean of 2x2 pixels
            mean = pixels.reshape(height, 2, width, 2, 3).mean((1, 3))
            assert np.abs(np.asarray(want.resize((width, height), Image.Resampling.BOX)) - mean).max() <= 1
        want = want.resize((width, height), Image.Resampling.BOX)
    scale = size / min(want.size)
    want = np.asarray(want.resize((round(want.width * scale), round(want.height * scale)), Image.Resampling.BICUBIC))
    top, left = (want.shape[0] - size) // 2, (want.shape[1] - size) // 2
    assert np.array_equal(np.asarray(centre_crop(image, size)), want[top : top + size, left : left + size])


def test_bad_folders_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none is not a folder"):
        folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images; files that end in png, jpg"):
        folder(tmp_path)
    (tmp_path / "a.png").write_bytes(png(6))
    (tmp_path / "b.png").write_bytes(png(6, 7))
    (tmp_path / "c.png").write_bytes(png(6)[:50])
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(tmp_path / "d.png")
    source = folder(tmp_path)
    source.image(0)
    with pytest.raises(DataError, match=r"b\.png is 6x7, not 6x6: give --size to crop and resize all images"):
        source.image(1)
    with pytest.raises(DataError, match=r"c\.png is not a readable image \("):
        source.image(2)
    with pytest.raises(DataError, match=r"d\.png is not a readable image \(more than 8 bits per channel\)"):
        source.image(3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.png").write_bytes(png(6))
    with pytest.raises(DataError, match=r"a\.png has no label: either all images of .* lie in sub-folders"):
        folder(tmp_path)


def test_an_image_smaller_than_asked_is_refused_or_enlarged(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30, 20))
    with pytest.raises(
        BadImageError,
        match=r"a\.png is 30x20, smaller than the 24 pixels asked for: give a smaller --size, or --enlarge to",
    ):
        folder(tmp_path, size=24).image(0)
    source = folder(tmp_path, size=24, enlarge=True)
    assert source.image(0).shape == (24, 24, 3) and source.transform.endswith("; smaller images are enlarged")


def test_the_size_is_that_of_the_first_readable_image(tmp_path):
    names = {"a.png": b"", "b.png": png(6)[:50], "c.png": png(7), "d.png": png(7)}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    for source in (folder(tmp_path), zipped(zip_of(tmp_path / "mine.zip", names))):
        assert source.image_size == 7 and source.image(2).shape == (7, 7, 3)
        for i, name in ((0, "a"), (1, "b")):
            with pytest.raises(BadImageError, match=rf"/{name}\.png is not a readable image \("):
                source.image(i)


def test_without_a_readable_image_there_is_no_size(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"none")
    with pytest.raises(
        DataError, match=rf"none of the 3 images of {tmp_path} can be read; 0\.png: is not a readable image \("
    ):
        folder(tmp_path)
    assert folder(tmp_path, size=6).count == 3


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    names = {
        "cat/0.png": png(6),
        "dog/0.png": png(6),
        ".ipynb_checkpoints/0.png": png(6),
        "cat/.thumbs/0.png": png(6),
        "dog/._0.png": b"",
    }
    for name, data in names.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    for source in (folder(tmp_path / "mine"), zipped(zip_of(tmp_path / "mine.zip", names))):
        assert source.classes == ("cat", "dog") and source.count == 2


def test_pictures_that_are_not_read_are_counted(tmp_path):
    names = {
        "x/a.png": png(6),
        "x/b.jfif": encoded(photo(0, 6, 6)),
        "preview.gif": b"",
        "x/c.TIF": b"",
        "notes.txt": b"",
        "x/._d.gif": b"",
    }
    for name, data in names.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    for source in (folder(tmp_path / "mine"), zipped(zip_of(tmp_path / "mine.zip", names))):
        assert (source.count, source.passed_over, source.classes) == (2, 2, ("x",)) and source.image(1).shape == (
            6,
            6,
            3,
        )


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "0.png").write_bytes(png(6))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat").symlink_to(tmp_path / "far")
    (tmp_path / "mine" / "dog").symlink_to(tmp_path / "far")
    source = folder(tmp_path / "mine")
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 1] and source.image(1).shape == (6, 6, 3)
    (tmp_path / "far" / "again").symlink_to(tmp_path / "mine")
    with pytest.raises(
        DataError,
        match=r"again is a link to a folder that it lies in, so its images would have no end: remove the link$",
    ):
        folder(tmp_path / "mine")


def test_files_that_cannot_be_read_are_bad_images_by_name(tmp_path, monkeypatch):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(png(6))
    (tmp_path / "d.png").write_bytes(png(6) + bytes(1000))
    monkeypatch.setattr("cmdist.data.preparing.sources.base.MAX_BYTES", 900)
    source = folder(tmp_path)
    assert source.count == 4 and source.image_size == 6 and source.image(2).shape == (6, 6, 3)
    for i, sentence in (
        (0, r"a\.png cannot be read: No such file"),
        (1, r"b\.png cannot be read: Too many levels"),
        (3, r"d\.png has \d+ bytes, 900 are"),
    ):
        with pytest.raises(BadImageError, match=sentence):
            source.image(i)


def test_a_folder_that_fails_is_not_listed_as_if_it_were_whole():
    class Failing:
        name = "a.png"

        def stat(self):
            raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale file handle"):
        stat_of(Failing())


def test_a_disk_that_fails_is_no_bad_image(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.png").write_bytes(png(6))
    source = folder(tmp_path, size=6)
    monkeypatch.setattr("cmdist.data.preparing.sources.base.check_length", fails)
    with pytest.raises(OSError, match="Input/output error"):
        source.image(0)


def test_enlarged_images_are_held_to_the_limit_of_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1_000_000))
    (tmp_path / "b.png").write_bytes(png(2, 20))
    source = folder(tmp_path, size=64, enlarge=True)
    with pytest.raises(
        BadImageError,
        match=r"a\.png is 1x1000000, which enlarged to 64 pixels would be 64x64000000: 100000000 in all are al",
    ):
        source.image(0)
    assert source.image(1).shape == (64, 64, 3)


# zip files


def zip_of(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_like_the_folder(tmp_path, method):
    members = {
        f"{'ab'[i % 2]}/{i}.{'PNG' if i % 3 else 'jpg'}": encoded(photo(i, 50 + i, 40), "PNG" if i % 3 else "JPEG")
        for i in range(7)
    }
    archive = zip_of(
        tmp_path / "mine.zip",
        members | {"a/": b"", "readme.txt": b"words", "__MACOSX/a/._0.jpg": b"\0\5\x16\7"},
        compression=method,
    )
    for name, data in members.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    a, b = zipped(archive, size=24), folder(tmp_path / "mine", size=24)
    assert (a.name, a.count, a.classes, a.labels.tolist()) == (b.name, 7, ("a", "b"), b.labels.tolist())
    want = [members[name] for name in sorted(members)]
    assert all(
        np.array_equal(a.image(i), cropped(want[i], 24)) and np.array_equal(b.image(i), cropped(want[i], 24))
        for i in range(7)
    )


def test_zips_with_a_prefix_and_comments_are_read(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"1.png": png(6)})
    path.write_bytes(b"#!/bin/self-extractor" * 50 + path.read_bytes())
    assert zipped(path).image(0)[0, 0].tolist() == [10, 20, 30]


def zip_info(name, mode=0o100644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../a.png", r"a\.zip holds a member '\.\./a\.png': names that are absolute or hold '\.\.' are refused$"),
        ("x/../../a.png", r"names that are absolute or hold '\.\.' are refused$"),
        ("/a.png", r"a\.zip holds a member '/a\.png': names that are absolute"),
        ("..\\a.png", r"names that are absolute or hold '\.\.' are refused$"),
        (zip_info("a.png", 0o120777), r"a\.zip holds a link 'a\.png': links are refused$"),
    ],
)
def test_unsafe_zip_members_are_refused(tmp_path, name, sentence):
    with pytest.raises(DataError, match=sentence):
        zipped(zip_of(tmp_path / "a.zip", {name: png(6)}))


def test_damaged_zips_are_one_sentence(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"1.png": png(6), "2.png": png(6)}, compression=zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.zip cannot be read as a zip file: "):
        zipped(path)
    for place, change in ((50, 0xFF), (60, 0x10)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        with pytest.raises(BadImageError, match=r"a\.zip/1\.png is damaged in the zip file: "):
            zipped(path, size=6).image(0)
    path.write_bytes(whole[:2] + b"xx" + whole[4:])
    with pytest.raises(DataError, match=r"a\.zip/1\.png is not where the zip file's directory says"):
        zipped(path, size=6).image(0)
    with pytest.raises(DataError, match=r"none\.zip cannot be read as a zip file: "):
        zipped(tmp_path / "none.zip")
    with pytest.raises(DataError, match="compressed by method 14; stored and deflated members are read"):
        zipped(zip_of(path, {"1.png": png(6)}, compression=zipfile.ZIP_LZMA))


def test_zip_bombs_are_refused_before_they_expand(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "a.zip", {"1.png": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zips, "MAX_BYTES", 10**5)
    with pytest.raises(DataError, match=r"a\.zip/1\.png expands to 1000000 bytes, 100000 are allowed$"):
        zipped(path)
    data = path.read_bytes()  # now the directory says that it expands to 1,000 bytes
    place = data.rindex(b"PK\1\2") + 24
    path.write_bytes(data[:place] + (1000).to_bytes(4, "little") + data[place + 4 :])
    tracemalloc.start()
    with pytest.raises(BadImageError, match="its size or checksum is not that of the directory"):
        zipped(path, size=6).image(0)
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
