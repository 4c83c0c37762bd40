"""Points A.2(b), (d), (f) to (i) through the command: own pictures, shards beside other things, changed sources."""

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import os
import shlex
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from cmdist.data.images import open_dataset
from cmdist.errors import ConfigError, DataError
from conftest_data import encoded, photo, png, png_of_rows, tar_of


@pytest.fixture
def prepare_data():
    path = Path(__file__).parents[2] / "pipelines" / "prepare_data.py"
    spec = importlib.util.spec_from_file_location("prepare_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def turned(width, height):
    exif = Image.Exif()
    exif[274] = 6
    return encoded(photo(0, width, height), exif=exif)


def transparent(side):
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[: side // 2, :, 3] = 255
    return encoded(Image.fromarray(pixels), "PNG")


def shards(path):
    for n in (0, 1, 3):
        path.mkdir(exist_ok=True)
        tar_of(path / f"s-{n:03d}.tar", [(f"{n}.png", encoded(photo(n, 8, 8), "PNG"))])
    return path


def test_a2b_what_is_no_shard_is_named_and_what_can_be_read_is(prepare_data, tmp_path, capsys):
    root = shards(tmp_path / "set")
    (root / "s-001.tar").rename(root / "s-001.TAR")
    (root / "s-004.tar.gz").write_bytes(gzip.compress((root / "s-000.tar").read_bytes()))
    (root / "s-005.tgz").write_bytes(b"")
    shards(root / "more")
    prepare_data.main(["shards", str(root)])
    said = capsys.readouterr().err
    assert "warning: 3 names in " in said and "more, s-004.tar.gz, s-005.tgz;" in said
    dataset = open_dataset(str(root), memory=0)
    assert [entry["name"] for entry in dataset.index["shards"]] == ["s-000.tar", "s-001.TAR", "s-003.tar"]
    assert np.array_equal(dataset.image(1), photo(1, 8, 8))


def test_a2b_a_gap_in_the_numbers_is_named(prepare_data, tmp_path, capsys):
    prepare_data.main(["shards", str(shards(tmp_path / "set"))])
    assert "have gaps: s-002.tar is not there" in capsys.readouterr().err


def test_a2b_nothing_but_compressed_shards_is_refused_by_name(prepare_data, tmp_path):
    write(tmp_path / "set", {"a.tar.gz": b"x", "b.tgz": b"x"})
    with pytest.raises(DataError, match=r"it holds 2 others: a\.tar\.gz, b\.tgz; unpack what is compressed$"):
        prepare_data.main(["shards", str(tmp_path / "set")])


def numbered(root, count=4):
    root.mkdir()
    for n in range(count):
        members = [(f"{n}.png", encoded(photo(n, 8, 8), "PNG")), (f"{n}.json", b'{"caption": "a", "label": %d}' % n)]
        tar_of(root / f"{n:05d}.tar", members)
    return root


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("{00000..00002}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("{00003,00001}.tar", ["00003.tar", "00001.tar"]),
        ("00002.tar", ["00002.tar"]),
    ],
)
def test_b_shards_by_a_pattern_or_one(prepare_data, tmp_path, capsys, chosen, names):
    root = numbered(tmp_path / "set")
    prepare_data.main(["shards", f"{root}/{chosen}"])
    dataset = open_dataset(str(root), memory=0)
    assert [entry["name"] for entry in dataset.index["shards"]] == names
    assert np.array_equal(dataset.image(0), photo(int(names[0][:5]), 8, 8))
    assert f"{4 - len(names)} other shards of {root} are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("{00000..00005}.tar", r"has no shard 00004\.tar \(2 of 6 are missing\)"),
        ("{00000..00002.tar", "a brace is not closed"),
        ("{0..99999999999}.tar", "at most 1,000,000 shards"),
        ("{a,b}/{0..1}.tar", "only the names of the shards may be a pattern"),
        ("00009.tar", r"has no shard 00009\.tar"),
    ],
)
def test_b_a_pattern_that_cannot_be_is_one_sentence_and_writes_nothing(prepare_data, tmp_path, chosen, said):
    root = numbered(tmp_path / "set")
    with pytest.raises((ConfigError, DataError), match=said):
        prepare_data.main(["shards", f"{root}/{chosen}"])
    assert len(list(root.iterdir())) == 4


def test_b_labels_of_json_members(prepare_data, tmp_path, capsys):
    root = numbered(tmp_path / "set")
    prepare_data.main(["shards", str(root)])
    assert "4 samples have a .json member" in (said := capsys.readouterr().err) and "keys are caption, label" in said
    assert not open_dataset(str(root)).labelled
    for path in ("index.json", "index.npz"):
        (root / path).unlink()
    prepare_data.main(["shards", str(root), "--label-key", "label"])
    assert open_dataset(str(root)).labels(range(4)).tolist() == [0, 1, 2, 3]


def test_b_names_of_json_members_are_labels_by_a_file_of_classes(prepare_data, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    members = [(f"{n}.{kind}", data) for n in range(2) for kind, data in (
        ("png", png(8)), ("json", b'{"what": "%s"}' % (b"cat", b"dog")[n]))]  # fmt: skip
    tar_of(tmp_path / "set" / "0.tar", members)
    command = ["shards", str(tmp_path / "set"), "--label-key"]
    with pytest.raises(DataError, match=r"0\.json has None under 'label': a class number from 0 to .* is needed"):
        prepare_data.main([*command, "label"])
    with pytest.raises(DataError, match=r"0\.json has 'cat' under 'what': a class number .*, or a name of --classes"):
        prepare_data.main([*command, "what"])
    prepare_data.main([*command, "what", "--classes", str(tmp_path / "classes.txt")])
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.labels(range(2)).tolist() == [1, 0] and dataset.classes == ("dog", "cat")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_b_a_compressed_shard_under_the_name_of_a_plain_one_is_named(prepare_data, tmp_path, pack):
    root = numbered(tmp_path / "set")
    (root / "00001.tar").write_bytes(pack((root / "00001.tar").read_bytes()))
    with pytest.raises(DataError, match=r"shard 00001\.tar is compressed \((gzip|bzip2|xz)\), whatever its name says"):
        prepare_data.main(["shards", str(root)])


def test_b_shards_without_samples_are_passed_over_and_counted(prepare_data, tmp_path, capsys):
    """img2dataset leaves such where no download succeeded."""
    root = numbered(tmp_path / "set")
    for name in ("00000.tar", "00002.tar"):
        tar_of(root / name, [])
    prepare_data.main(["shards", str(root)])
    assert "2 of 4 shards have no sample and are left out: 00000.tar, 00002.tar" in capsys.readouterr().err
    dataset = open_dataset(str(root), memory=0)
    assert len(dataset) == 2 and np.array_equal(dataset.image(1), photo(3, 8, 8))
    for path in root.iterdir():
        path.unlink()
    tar_of(root / "0.tar", [])
    with pytest.raises(DataError, match=r"the shards of .*set have no sample: 0\.tar holds nothing"):
        prepare_data.main(["shards", str(root)])


def test_b_a_dot_too_many_in_a_name_is_explained(prepare_data, tmp_path):
    (tmp_path / "set").mkdir()
    tar_of(tmp_path / "set" / "a.tar", [("photo.v2.png", png(8))])
    with pytest.raises(DataError, match=r"'photo\.v2\.png' has a dot too many; .* this is a member of sample photo"):
        prepare_data.main(["shards", str(tmp_path / "set")])


def test_a2c_indexing_leaves_out_and_names_images_of_which_a_part_is_missing(prepare_data, tmp_path, capsys):
    half = png_of_rows(np.asarray(photo(1, 8, 8)), 4)
    (tmp_path / "set").mkdir()
    tar_of(tmp_path / "set" / "a.tar", [("0.png", png(8)), ("1.png", half), ("2.png", png(8))])
    with pytest.raises(DataError, match=r"^shard a\.tar: 1\.png is not a readable image \(it is incomplete: "):
        prepare_data.main(["shards", str(tmp_path / "set")])
    prepare_data.main(["shards", str(tmp_path / "set"), "--max-bad", "1"])
    assert "unreadable images were left out" in capsys.readouterr().out
    dataset = open_dataset(str(tmp_path / "set"))
    assert [dataset.key(i) for i in range(len(dataset))] == ["0", "2"]


def test_a2d_classes_are_told_with_their_numbers(prepare_data, tmp_path, capsys):
    root = write(tmp_path / "in", {f"{name}/{i}.png": png(6) for name, n in (("a", 3), ("b", 1)) for i in range(n)})
    prepare_data.main(["folder", str(root), "--workers", "1", "--out", str(tmp_path / "out")])
    assert "classes: a 3, b 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [["--background", "no colour"], ["--max-pixels", "0"], ["--size", "4", "--unlabelled"]]
)
def test_a2_options_are_checked_before_anything_is_read(prepare_data, tmp_path, option):
    more = ["--classes", "x"] if "--unlabelled" in option else []
    with pytest.raises(ConfigError, match="is no colour|--max-pixels 0: 1 to|contradict"):
        prepare_data.main(["folder", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *option, *more])


def test_a2fh_turned_and_transparent_pictures_are_counted_in_the_index(prepare_data, tmp_path, capsys):
    members = {"a.jpg": turned(40, 32), "b.jpg": turned(32, 40), "c.png": transparent(32), "d.png": png(32)}
    root = write(tmp_path / "in", members)
    arguments = ["folder", str(root), "--size", "16", "--per-shard", "2", "--out"]
    prepare_data.main([*arguments, str(tmp_path / "out"), "--workers", "2"])
    said = capsys.readouterr().out
    assert "2 turned upright" in said and "1 transparent ones laid on the background" in said
    index = open_dataset(str(tmp_path / "out")).index
    assert (index["origin"]["turned"], index["origin"]["transparent"]) == (2, 1)
    assert index["prepared"]["background"] == "#ffffff"
    options = ["--ignore-rotation", "--background", "#0000ff", "--workers", "1"]
    prepare_data.main([*arguments, str(tmp_path / "other"), *options])
    other = open_dataset(str(tmp_path / "other"))
    assert "turned" not in other.index["origin"] and other.index["prepared"]["background"] == "#0000ff"
    image = next(other.image(i) for i in range(4) if other.key(i) == f"{2:08d}")
    assert image[-1, 0].tolist() == [0, 0, 255] and image[0, 0].tolist() == [0, 0, 0]


def change_folder(path):
    (path / "1.ppm").write_bytes((path / "2.ppm").read_bytes())  # as large


def change_lsun(path):
    data, value = (path / "data.mdb").read_bytes(), encoded(photo(1, 8, 8)) + b"--"
    (path / "data.mdb").write_bytes(data.replace(value, value[:-1] + b"+"))


def folder_source(path):
    write(path, {f"{i}.ppm": encoded(Image.new("RGB", (6, 6), (i, i, i)), "PPM") for i in range(5)})
    return ["folder", str(path)]


def lsun_source(path):
    with lmdb.open(str(path), map_size=2**22) as environment, environment.begin(write=True) as transaction:
        for i in range(5):
            transaction.put(f"{i}".encode(), encoded(photo(i, 8, 8)) + b"--")
    return ["lsun", str(path), "--size", "8"]


@pytest.mark.parametrize(("source", "change"), [(folder_source, change_folder), (lsun_source, change_lsun)])
def test_a2g_a_source_that_changed_since_is_noticed(prepare_data, tmp_path, capsys, source, change):
    arguments = [*source(tmp_path / "in"), "--workers", "1", "--out", str(tmp_path / "out")]
    prepare_data.main(arguments)
    capsys.readouterr()
    prepare_data.main(arguments)
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'out'} is prepared already\n" and told.err == ""
    size = {path: path.stat().st_size for path in (tmp_path / "in").iterdir()}
    change(tmp_path / "in")
    assert {path: path.stat().st_size for path in size} == size
    with pytest.raises(DataError, match=r"is prepared already, but its source has changed since \(the content of some"):
        prepare_data.main(arguments)


def test_a2g_names_sizes_labels_and_times_are_compared(prepare_data, tmp_path, capsys):
    root = write(tmp_path / "in", {f"{'ab'[i % 2]}/{i}.png": png(6) for i in range(6)})
    arguments = ["folder", str(root), "--workers", "1", "--out", str(tmp_path / "out")]
    prepare_data.main(arguments)
    os.utime(root / "a" / "0.png", (1, 1))
    prepare_data.main(arguments)
    told = capsys.readouterr()
    assert "files of the source were changed since it was prepared, by their times" in told.err
    assert "is prepared already" in told.out
    (root / "a" / "0.png").rename(root / "b" / "0.png")
    with pytest.raises(DataError, match=r"its source has changed since \(its names, sizes or labels\)"):
        prepare_data.main(arguments)
    (root / "b" / "0.png").rename(root / "a" / "0.png")
    root.rename(tmp_path / "away")
    prepare_data.main(arguments)
    assert "its source was not compared: " in capsys.readouterr().out
    index = tmp_path / "out" / "index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "origin"}))
    prepare_data.main(arguments)
    assert "kept nothing to compare its source with" in capsys.readouterr().out


def odd_pictures(root):
    """Ten kinds of odd pictures, and ordinary ones."""
    animated = io.BytesIO()
    photo(0, 80, 80).save(animated, "WEBP", save_all=True, append_images=[photo(1, 80, 80)], duration=9)
    whole = encoded(photo(5, 90, 80))
    return write(
        root,
        {
            **{f"cat/{i}.jpg": encoded(photo(i, 80, 90)) for i in range(3)},
            "cat/small.png": png(20, 30),
            "cat/large.png": encoded(Image.new("1", (12_000, 9_000)), "PNG"),
            "dog/turned.jpg": turned(90, 80),
            "dog/transparent.png": transparent(70),
            "dog/half.png": png_of_rows(np.asarray(photo(4, 80, 80)), 40),
            "dog/half.jpg": whole[: len(whole) // 2] + b"\xff\xd9",
            "dog/words.png": b"words",
            "dog/deep.png": encoded(Image.fromarray(np.zeros((80, 80), np.uint16)), "PNG"),
            "dog/animated.webp": animated.getvalue(),
            "dog/grey.png": encoded(photo(6, 80, 80, "L"), "PNG"),
            "dog/cmyk.jpg": encoded(photo(7, 80, 80, "CMYK")),
            "dog/empty.jpg": b"",
            "dog/more.gif": b"GIF89a",
            "loose.png": png(80),
        },
    )


LOOK = [
    "1  are smaller than 64 pixels, so --enlarge",
    "1  have more than 100000000 pixels, so --max-pixels is needed, e.g. cat/large.png",
    "1  lie down or on their heads, and are turned upright as their EXIF data say, e.g. dog/turned.jpg",
    "1  are transparent in parts, and are laid on the background, e.g. dog/transparent.png",
    "1  cannot be read: it is incomplete: N bytes of pixels, not N, e.g. dog/half.png",
    "1  cannot be read: it is incomplete: its code ends before its last pixel, e.g. dog/half.jpg",
    "2  cannot be read: no image format that is allowed here: PNG, JPEG, WebP, PPM, e.g. dog/empty.jpg, dog/words.png",
    "1  cannot be read: more than N bits per channel, e.g. dog/deep.png",
    "1  are animations or several pictures, of which the first is taken, e.g. dog/animated.webp",
    "1  are of mode L, and become RGB, e.g. dog/grey.png",
    "1  are of mode CMYK, and become RGB, e.g. dog/cmyk.jpg",
    "1  pictures of other formats are passed over",
    "sizes there are, so --size is needed, e.g. --size 64",
    "no labels can be had: ",
]


def test_a2i_a_dry_look_lists_everything_at_once_and_prints_the_command_that_works(prepare_data, tmp_path, capsys):
    root = odd_pictures(tmp_path / "my pictures")
    out = tmp_path / "out"
    prepare_data.main(["folder", str(root), "--out", str(out), "--check"])
    said = capsys.readouterr().out
    assert [line for line in LOOK if line not in said] == [] and not out.exists()
    command = shlex.split(said.splitlines()[-1])
    assert command[:2] == ["python", "pipelines/prepare_data.py"]
    for option in (["--size", "64"], ["--max-pixels", "108000000"], ["--max-bad", "5"]):
        assert command[command.index(option[0]) :][:2] == option
    assert "--enlarge" in command and "--unlabelled" in command
    prepare_data.main([*command[2:], "--workers", "1"])
    dataset = open_dataset(str(out))
    assert len(dataset) == 11 and dataset.image_size == 64 and not dataset.labelled
    assert len((out / "unreadable.txt").read_text().splitlines()) == 5


def test_a2i_a_folder_in_order_needs_no_options(prepare_data, tmp_path, capsys):
    root = write(tmp_path / "in", {f"{'ab'[i % 2]}/{i}.png": png(32) for i in range(6)})
    prepare_data.main(["folder", str(root), "--out", str(tmp_path / "out"), "--check"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"python pipelines/prepare_data.py folder {root} --out {tmp_path / 'out'}"
    assert f"{root}: 6 images" in said and "classes: a 3, b 3" in said and len(said) == 4


def test_a2i_where_nothing_can_be_read_no_command_is_printed(prepare_data, tmp_path, capsys):
    root = write(tmp_path / "in", {"a.png": b"words"})
    prepare_data.main(["folder", str(root), "--out", str(tmp_path / "out"), "--check"])
    assert capsys.readouterr().out.splitlines()[-1] == "none can be read, so no command would work"
