"""Points A.2(d) and (e): classes by folders, by dataset.json and in the order of a file; names twice in a zip file."""

import json
import warnings
from zipfile import ZipFile

import numpy as np
import pytest

from cmdist.data.preparing.sources.files import folder, zipped
from cmdist.data.preparing.sources.labels import by_folder, counts
from cmdist.errors import DataError
from conftest_data import encoded, photo, png


def both(tmp_path, members):
    """The folder and the zip file of these members; a name that ends in '/' is a folder."""
    root, archive = tmp_path / "in", tmp_path / "in.zip"
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_bytes(data)
    with ZipFile(archive, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return [(folder, root), (zipped, archive)]


def edm(labels, base=""):
    names = [f"{i // 2:05d}/img{i:08d}.png" for i in range(4)]
    members = {base + name: encoded(photo(i, 6, 6), "PNG") for i, name in enumerate(names)}
    rows = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    return members | {f"{base}dataset.json": json.dumps({"labels": rows}).encode()}


@pytest.mark.parametrize("base", ["", "wrapped/"])
def test_a2d_labels_of_edm_are_those_of_dataset_json(tmp_path, base):
    for make, path in both(tmp_path, edm([2, 0, 1, 2], base)):
        source = make(path)
        assert source.labels.tolist() == [2, 0, 1, 2] and source.classes == ("0", "1", "2")
        assert np.array_equal(source.image(2), photo(2, 6, 6))
        assert any(note.endswith("dataset.json") for note in source.notes)


def test_a2d_edm_without_labels_has_none_though_there_are_folders(tmp_path):
    for make, path in both(tmp_path, edm(None)):
        assert make(path).labels is None and make(path).classes == ()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (
            b'{"labels": [["00000/img00000000.png", 1.5]]}',
            r'labels must be a list of .*, not \["00000/img00000000.png"',
        ),
        (b'{"labels": [["00000/img00000000.png", true]]}', "labels must be a list of"),
        (b'{"labels": [["00000/img00000000.png", -1]]}', "labels must be a list of"),
        (b'{"labels": 7}', "labels must be a list of"),
        (b'{"labels": [["00000/img00000000.png", 0]]}', r"gives no label for 00000/img00000001\.png \(3 of 4 images"),
    ],
)
def test_a2d_a_dataset_json_that_cannot_be_meant_is_refused(tmp_path, content, sentence):
    for make, path in both(tmp_path, edm(None) | {"dataset.json": content}):
        with pytest.raises(DataError, match=sentence):
            make(path)
        assert make(path, unlabelled=True).labels is None


def test_a2d_a_dataset_json_of_something_else_is_no_table_of_labels(tmp_path):
    for make, path in both(tmp_path, {"cat/0.png": png(6), "dataset.json": b'{"images": []}'}):
        assert make(path).classes == ("cat",)


def test_a2d_numbers_are_in_their_natural_order_and_that_is_said(tmp_path):
    for make, path in both(tmp_path, {f"{name}/0.png": png(6) for name in ("0", "1", "10", "2")}):
        source = make(path)
        assert source.classes == ("0", "1", "2", "10") and source.labels.tolist() == [0, 1, 3, 2]
        assert any("2 comes before 10" in note for note in source.notes)
    names = [f"class{n}/0.png" for n in (1, 10, 9)]
    assert by_folder(names, "x").classes == ("class1", "class9", "class10")
    assert by_folder(["cat/0.png", "dog/0.png"], "x").notes == ()


def test_a2d_an_empty_class_is_refused_unless_the_file_names_it(tmp_path):
    members = {"cat/0.png": png(6), "cow/": b"", "dog/0.png": png(6)}
    order = tmp_path / "classes.txt"
    for make, path in both(tmp_path, members):
        with pytest.raises(DataError, match=r"/cow holds no images, so the labels of the classes after it would be"):
            make(path)
        order.write_text("dog\ncow\ncat\n")
        source = make(path, classes=order)
        assert source.classes == ("dog", "cow", "cat") and source.labels.tolist() == [2, 0]
        assert counts(source.classes, source.labels) == "dog 1, cow 0, cat 1"
    with pytest.raises(DataError, match=r"/wrapped/cow holds no images"):
        folder(both(tmp_path / "b", {f"wrapped/{name}": data for name, data in members.items()})[0][1])
    with pytest.raises(DataError, match=r"class 1 has no images; name all classes in a file for --classes$"):
        zipped(both(tmp_path / "c", edm([2, 0, 0, 2]))[1][1])
    order.write_text("a\nb\nc\n")
    assert zipped(tmp_path / "c" / "in.zip", classes=order).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cat\n", r"the folder 'dog' is not among the classes of the file given by --classes"),
        ("cat\ndog\ncat\n", r"names 'cat' twice"),
        ("\n \n", r"names no class"),
        (None, r"cannot be read"),
    ],
)
def test_a2d_a_file_of_classes_that_does_not_fit_is_refused(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    for make, path in both(tmp_path, {"cat/0.png": png(6), "dog/0.png": png(6)}):
        with pytest.raises(DataError, match=sentence):
            make(path, classes=tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("folders", "kind"),
    [
        (("train", "test"), "look like splits"),
        (("Val", "cat"), "look like splits"),
        (("00000", "00001"), "look like counters"),
        (("0a", "3f", "b7"), "look like hashes"),
        (("cat", "dog"), None),
        (("0", "1", "2"), None),
        (("be", "ad"), None),  # hexadecimal, but words
        (("10", "20"), None),
    ],
)
def test_a2d_folders_that_are_hardly_classes_are_warned_of(tmp_path, folders, kind):
    for make, path in both(tmp_path, {f"{name}/0.png": png(6) for name in folders}):
        found = [note for note in make(path).notes if note.startswith("warning")]
        assert (kind is None and found == []) or (len(found) == 1 and kind in found[0] and "--unlabelled" in found[0])


def test_a2e_of_a_name_twice_in_a_zip_the_last_file_counts_as_for_unzip(tmp_path):
    path = tmp_path / "a.zip"
    with warnings.catch_warnings(), ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's own, of the names
        for i, name in enumerate(["a.png", "b.png", "a.png", "./b.png"]):
            archive.writestr(name, encoded(photo(i, 6, 6), "PNG"))
    source = zipped(path)
    assert source.count == 2 and any("2 names stand twice" in note for note in source.notes)
    assert sorted(source.image(i).tobytes() for i in range(2)) == sorted(photo(i, 6, 6).tobytes() for i in (2, 3))


def test_a2e_of_a_table_twice_the_last_one_counts(tmp_path):
    path = both(tmp_path, edm([0, 0, 1, 1]))[1][1]
    with warnings.catch_warnings(), ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("dataset.json", edm([1, 1, 0, 0])["dataset.json"])
    assert zipped(path).labels.tolist() == [1, 1, 0, 0]
