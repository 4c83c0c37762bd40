import numpy as np
import pytest

from cmdist.data.decode import BadImageError
from cmdist.data.preparing.sources.imagenet import imagenet
from cmdist.errors import DataError
from conftest_data import cropped, encoded, link, photo, tar_of

SYNSETS = ["n02119789", "n01440764", "n13133613"]  # not in sorted order, as in the published tar


def pictures(synset, n):
    """Names and JPEGs of one synset; among ImageNet's are grey and CMYK ones, and a PNG called JPEG."""
    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")]
    seed = int(synset[1:])
    return {
        f"{synset}_{seed % 97 + i}.JPEG": encoded(
            photo(seed + i, 90 + 37 * i, 140 - 11 * i, kinds[i % 4][0]), kinds[i % 4][1]
        )
        for i in range(n)
    }


@pytest.fixture
def data():
    return {synset: pictures(synset, 3 + number) for number, synset in enumerate(SYNSETS)}


def as_folders(root, data):
    for synset, files in data.items():
        (root / synset).mkdir(parents=True)
        for name, content in files.items():
            (root / synset / name).write_bytes(content)
    return root


def as_tar(path, data):
    """ILSVRC2012_img_train.tar: one tar for each synset, padded to 10,240 bytes as tar does."""
    inner = [
        (f"{synset}.tar", tar_of(path.parent / f"{synset}.tar", files.items()).read_bytes())
        for synset, files in data.items()
    ]
    return tar_of(path, inner)


@pytest.fixture(params=["folders", "tar"])
def root(request, data, tmp_path):
    return (
        as_folders(tmp_path / "train", data)
        if request.param == "folders"
        else as_tar(tmp_path / "ILSVRC2012_img_train.tar", data)
    )


def test_labels_are_places_of_sorted_synsets_and_pixels_adms(root, data):
    source = imagenet(root, 32, synsets=3)
    want = [
        (label, data[synset][name]) for label, synset in enumerate(sorted(SYNSETS)) for name in sorted(data[synset])
    ]
    assert source.classes == ("n01440764", "n02119789", "n13133613") and source.count == 12 and source.image_size == 32
    assert source.labels.tolist() == [label for label, _ in want]
    for i, (_, content) in enumerate(want):
        assert np.array_equal(source.image(i), cropped(content, 32))


def test_folder_and_tar_are_the_same_images(data, tmp_path):
    a = imagenet(as_folders(tmp_path / "train", data), 64, synsets=3)
    b = imagenet(as_tar(tmp_path / "x.tar", data), 64, synsets=3)
    assert all(np.array_equal(a.image(i), b.image(i)) for i in range(12)) and a.fingerprint == b.fingerprint


def test_missing_synsets_would_shift_the_labels(root):
    with pytest.raises(
        DataError,
        match=r"holds 3 synsets, not 1000, so labels would not be ImageNet's; complete it, or give --synsets 3",
    ):
        imagenet(root)


def test_images_outside_of_synsets_have_no_label(data, tmp_path):
    root = as_folders(tmp_path / "train", data)
    (root / "stray.JPEG").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"train holds 'stray\.JPEG', which is no synset, so its images have no label: the train folder"
    ):
        imagenet(root, 32, synsets=3)
    (root / "stray.JPEG").unlink()
    (root / SYNSETS[0] / "more").mkdir()
    with pytest.raises(DataError, match=r"n02119789/more is not a file: a synset folder holds images only"):
        imagenet(root, 32, synsets=3)
    (root / SYNSETS[0] / "more").rmdir()
    for path in (root / SYNSETS[1]).iterdir():
        path.unlink()
    with pytest.raises(DataError, match="n01440764 holds no images"):
        imagenet(root, 32, synsets=3)
    with pytest.raises(DataError, match=r"holds 'notes\.txt', which is no synset"):
        imagenet(tar_of(tmp_path / "a.tar", [("notes.txt", b"x")]), synsets=1)


def test_a_tar_cut_anywhere_is_refused(data, tmp_path):
    path = as_tar(tmp_path / "train.tar", data)
    whole = path.read_bytes()
    for cut in range(512, len(whole) - 10240, 3 * 512):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="train.tar is truncated"):
            imagenet(path, synsets=3)
    path.write_bytes(whole)
    imagenet(path, synsets=3)


def test_an_inner_tar_cut_anywhere_is_refused(data, tmp_path):
    name = "n01440764.tar"
    inner = tar_of(tmp_path / "inner.tar", data["n01440764"].items()).read_bytes()
    other = tar_of(tmp_path / "other.tar", data["n02119789"].items()).read_bytes()
    ends = inner.rstrip(b"\0")
    for cut in (0, 300, 512, 1024, 2048, len(ends) // 512 * 512):
        path = tar_of(tmp_path / "train.tar", [(name, inner[:cut]), ("n02119789.tar", other)])
        with pytest.raises(
            DataError, match=r"(n01440764\.tar is truncated|n01440764\.tar holds no images|refused|n01440764)"
        ):
            imagenet(path, synsets=2)


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (
            ("../evil.JPEG", b"x"),
            r"n01440764\.tar holds a member '\.\./evil\.JPEG': names that are absolute or hold '\.\.' are refused$",
        ),
        (("/etc/evil.JPEG", b"x"), r"holds a member '/etc/evil\.JPEG': names that are absolute"),
        (
            ("a.JPEG", link("a.JPEG")),
            r"n01440764\.tar holds 'a\.JPEG', a link or another thing that is not a file: refused$",
        ),
    ],
)
def test_unsafe_members_are_refused(tmp_path, member, sentence):
    inner = tar_of(tmp_path / "inner.tar", [member]).read_bytes()
    with pytest.raises(DataError, match=sentence):
        imagenet(tar_of(tmp_path / "train.tar", [("n01440764.tar", inner)]), synsets=1)
    with pytest.raises(DataError, match="refused"):
        imagenet(tar_of(tmp_path / "outer.tar", [member]), synsets=1)


def test_what_a_tar_holds_twice_is_refused(data, tmp_path):
    inner = tar_of(tmp_path / "inner.tar", data["n01440764"].items()).read_bytes()
    with pytest.raises(DataError, match=r"train\.tar holds '\./n01440764\.tar' twice; each synset has one tar$"):
        imagenet(tar_of(tmp_path / "train.tar", [("n01440764.tar", inner), ("./n01440764.tar", inner)]), synsets=1)
    twice = tar_of(tmp_path / "twice.tar", [("./a.JPEG", b"1"), ("./b.JPEG", b"1"), ("a.JPEG", b"2")]).read_bytes()
    with pytest.raises(DataError, match=r"n01440764\.tar holds 'a\.JPEG' twice$"):
        imagenet(tar_of(tmp_path / "train.tar", [("n01440764.tar", twice)]), synsets=1)


def test_an_image_too_long_is_a_bad_image_before_it_is_read(root, monkeypatch):
    monkeypatch.setattr("cmdist.data.preparing.sources.base.MAX_BYTES", 100)
    with pytest.raises(BadImageError, match=r"n01440764/.* has \d+ bytes, 100 are allowed$"):
        imagenet(root, 32, synsets=3).image(0)


def test_a_corrupt_jpeg_is_a_bad_image_by_name(root, data, tmp_path):
    broken = {"n01440764": {"n01440764_1.JPEG": next(iter(data["n01440764"].values()))[:400]}}
    for path in (as_folders(tmp_path / "b", broken), as_tar(tmp_path / "b.tar", broken)):
        with pytest.raises(BadImageError, match=rf"{path.name}/n01440764/n01440764_1\.JPEG is not a readable image"):
            imagenet(path, 32, synsets=1).image(0)


def test_no_such_file_is_one_sentence(tmp_path):
    with pytest.raises(
        DataError, match=r"none is not there; give ImageNet's train folder or ILSVRC2012_img_train\.tar"
    ):
        imagenet(tmp_path / "none")
