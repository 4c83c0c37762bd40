import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from cmdist.data.decode import BadImageError
from cmdist.data.images import open_dataset
from cmdist.data.preparing import scan
from cmdist.data.preparing.indexing import index_shards
from cmdist.data.preparing.preparation import begin, divide
from cmdist.data.preparing.shards import write_dataset, write_shards
from cmdist.errors import CmdistError, DataError, FormatError
from cmdist.system import storage
from conftest_data import numbered, png


def change(path, edit):
    data = bytearray(Path(path).read_bytes())
    Path(path).write_bytes(edit(data))


def edit_index(url, **values):
    path = Path(url) / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tar(folder, name="a.tar", **members):
    """A tar of members; '__' in a name stands for '.'."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as archive:
        for member, data in members.items():
            info = tarfile.TarInfo(member.replace("__", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(folder)


# what is written


def test_what_is_written_is_read(dataset):
    images, labels = dataset.images(range(50)), dataset.labels(range(50))
    source = numbered(50)
    found = [int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in images]
    assert sorted(found) == list(range(50)) and found != list(range(50))  # all, shuffled
    for image, label, i in zip(images, labels, found, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), source.image(i)) and label == i % 10
    assert dataset.key(0) == f"{found[0]:08d}"
    assert dataset.classes == tuple("0123456789") and dataset.counts == (10,) * 5 and len(dataset) == 50


def test_shards_are_equal_within_one_and_the_same_input_gives_the_same_bytes(tmp_path):
    first, again, other = (str(tmp_path / name) for name in ("first", "again", "other"))
    for url, seed in ((first, 0), (again, 0), (other, 1)):
        write_dataset(url, numbered(23, channels=3), per_shard=10, seed=seed)
    assert open_dataset(first).counts == (8, 8, 7)
    names = storage.names(first)
    assert (
        names
        == ["index.json", "index.npz", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
        == storage.names(again)
    )
    assert all((tmp_path / "first" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    assert open_dataset(first).index_hash == open_dataset(again).index_hash != open_dataset(other).index_hash


def test_the_hash_is_of_the_samples_not_of_names_and_extractors(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    write_dataset(a, numbered(5))
    write_dataset(b, numbered(5), extractor={"file": "x", "checksum": "y"}, prepared={"source": "z"})
    assert open_dataset(a).index_hash == open_dataset(b).index_hash


def test_unlabelled(tmp_path):
    url = str(tmp_path / "set")
    write_dataset(url, numbered(5, labelled=False))
    dataset = open_dataset(url)
    assert not dataset.labelled and dataset.classes == ()
    with pytest.raises(DataError, match="has no labels"):
        dataset.labels([0])


def test_the_index_is_written_last(tmp_path, monkeypatch):
    written = []
    write = storage.write
    monkeypatch.setattr(storage, "write", lambda url, data: (written.append(Path(url).name), write(url, data)))
    write_dataset(str(tmp_path), numbered(5))
    assert written == ["shard-000000.npz", "index.npz", "index.json"]  # the first is the record of a finished shard


# WebDataset, both ways


def test_plain_webdataset_reads_our_shards(dataset):
    urls = [f"{dataset.url}/{shard['name']}" for shard in dataset.index["shards"]]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [dataset.key(i) for i in range(50)]
    assert [sample["cls"] for sample in samples] == dataset.labels(range(50)).tolist()
    ours = dataset.images(range(50)).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    assert np.array_equal(np.stack([sample["png"] for sample in samples]), ours)


def test_shards_of_plain_webdataset_are_indexed_and_read(tmp_path):
    source = numbered(25, size=6, channels=3)
    with wds.ShardWriter(str(tmp_path / "part-%03d.tar"), maxcount=10, verbose=0) as writer:
        for i in range(25):
            writer.write({"__key__": f"some/{i}", "png": source.image(i), "cls": i % 10, "json": {"not": "looked at"}})
    index = index_shards(str(tmp_path), name="mine", classes=list("abcdefghij"))
    assert [shard["count"] for shard in index["shards"]] == [10, 10, 5]
    dataset = open_dataset(str(tmp_path))
    assert np.array_equal(dataset.images(range(25)).permute(0, 2, 3, 1), np.stack([source.image(i) for i in range(25)]))
    assert dataset.labels(range(25)).tolist() == [i % 10 for i in range(25)]
    assert dataset.key(7) == "some/7" and dataset.classes[3] == "d"
    with pytest.raises(DataError, match=r"has an index\.json already"):
        index_shards(str(tmp_path))


# a data set that is not what it should be


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda url: Path(url, "shard-000003.tar").unlink(), r"^shard .*/shard-000003\.tar is missing$"),
        (
            lambda url: change(f"{url}/shard-000003.tar", lambda d: d[:-700]),
            r"^shard .*/shard-000003\.tar is truncated: \d+ bytes, the index says \d+$",
        ),
        (
            lambda url: change(f"{url}/shard-000003.tar", lambda d: d + b"more"),
            r"^shard .*3\.tar is not that of the index: \d+ bytes",
        ),
        (
            lambda url: change(f"{url}/index.npz", lambda d: d[:-1]),
            r"index\.npz does not match index\.json: its checksum is another$",
        ),
        (lambda url: Path(url, "index.npz").unlink(), r"index\.npz is missing$"),
        (
            lambda url: edit_index(url, count=49),
            r"index\.npz is damaged: index\.json says 49 samples, and its shards have 50",
        ),
        (lambda url: change(f"{url}/index.json", lambda d: d[:-30]), r"index\.json is damaged: "),
        (
            lambda url: edit_index(url, format=2),
            r"index\.json is an index of a data set of format 2; .* reads up to 1, use a newer one$",
        ),
        (lambda url: edit_index(url, shards=[]), r"^the data set at .* is empty$"),
        (
            lambda url: edit_index(url, shards=[{"name": "../a.tar"}]),
            r"shards\.0\.name is '\.\./a\.tar', and a plain file name that ends in \.tar is needed",
        ),
        (
            lambda url: Path(url, "index.json").unlink(),
            r"^there is no data set at .*: index\.json is missing; make one with pipelines",
        ),
    ],
)
def test_opening_a_damaged_data_set_is_one_sentence(dataset, damage, sentence):
    damage(dataset.url)
    with pytest.raises((DataError, FormatError), match=sentence):
        open_dataset(dataset.url)


def test_a_flipped_bit_is_found_when_the_image_is_read(dataset):
    path = Path(dataset.url) / "shard-000001.tar"
    place = path.read_bytes().index(b"IDAT") + 6
    path.write_bytes(bytes(b ^ (4 if i == place else 0) for i, b in enumerate(path.read_bytes())))
    opened = open_dataset(dataset.url)
    opened.images(range(10))
    with pytest.raises(
        DataError,
        match=r"^shard .*shard-000001\.tar is corrupt: "
        rf"the bytes of sample {opened.key(10)} are not those of the index$",
    ):
        opened.image(10)
    opened.images(range(11, 50))


def test_another_shard_of_the_same_size_is_found(dataset, tmp_path):
    other = str(tmp_path / "other")
    write_dataset(other, numbered(50), per_shard=10, seed=9)
    ours, theirs = Path(dataset.url) / "shard-000000.tar", Path(other) / "shard-000000.tar"
    data = theirs.read_bytes()
    ours.write_bytes(data[: ours.stat().st_size].ljust(ours.stat().st_size, b"\0"))
    with pytest.raises(DataError, match="is corrupt: the bytes of sample"):
        open_dataset(dataset.url).images(range(10))


def test_a_shard_that_is_cut_while_open_is_found(dataset):
    dataset.image(0)
    change(f"{dataset.url}/shard-000000.tar", lambda d: d[:1000])
    with pytest.raises(
        DataError, match=r"shard-000000\.tar is truncated: it ends before byte \d+, which the index knows"
    ):
        dataset.images(range(10))


def test_an_index_of_another_image_size_is_found(dataset):
    edit_index(dataset.url, image_size=8)
    with pytest.raises(DataError, match=rf"^sample {dataset.key(0)} of shard .*shard-000000\.tar is 4x4, not 8x8$"):
        open_dataset(dataset.url, memory=0).image(0)


def test_an_image_that_cannot_be_decoded_is_a_bad_image_not_a_bad_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "load", lambda data, _: (Image.open(io.BytesIO(data)), ()))  # as versions before indexed
    whole = png(64)
    url = tar(tmp_path / "set", **{"1__png": whole, "2__png": whole[: whole.index(b"IDAT") + 10]})  # its header is fine
    index_shards(url)
    dataset = open_dataset(url)
    dataset.image(0)
    with pytest.raises(BadImageError, match=r"^sample 2 of shard .*/a\.tar is not a readable image \(.+\)$"):
        dataset.image(1)


def test_pipe_urls_are_refused(tmp_path):
    for use in (open_dataset, index_shards, lambda url: write_dataset(url, numbered(3))):
        with pytest.raises(CmdistError, match="'pipe:' URLs run shell commands and are refused"):
            use(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


# shards that are not worth an index


def deep(side):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            {"1__png": b"no picture", "1__cls": b"0"},
            r"^shard a\.tar: 1\.png is not a readable image \(no image format that is allowed here: "
            r"PNG, JPEG, WebP, PPM\)$",
        ),
        ({"1__txt": b"words"}, r"^shard a\.tar: sample 1 has no image member \(one that ends in png, "),
        ({"1__png": png(4), "2__png": png(5)}, r"^shard a\.tar: 2\.png is 5x5, not 4x4$"),
        ({"1__png": png(4, 6)}, r"^shard a\.tar: 1\.png is 4x6, not 4x4$"),
        (
            {"1__png": png(4), "1__pyd": pickle.dumps(0)},
            r"^shard a\.tar holds 1\.pyd: members that may run code when read .* are refused$",
        ),
        (
            {"1__png": png(4), "1__meta__pkl": pickle.dumps(0)},
            r"^shard a\.tar holds 1\.meta\.pkl: members that may run code",
        ),
        ({"1__png": png(4), "1__jpg": png(4)}, r"^shard a\.tar has two images for sample 1$"),
        (
            {"1__png": png(4), "1__cls": b"cat"},
            r"^shard a\.tar: 1\.cls must hold a class number from 0 to 999999, not b'cat'$",
        ),
        (
            {"1__png": png(4), "1__cls": b"1000000"},
            r"^shard a\.tar: 1\.cls must hold a class number from 0 to 999999, not b'1000000'$",
        ),
        (
            {"1__png": png(4), "1__cls": b"9" * 5000},
            r"^shard a\.tar: 1\.cls must hold a class number from 0 to 999999, not b'9999",
        ),
        ({"1__png": png(4), "1__cls": b"1", "1__CLS": b"2"}, r"^shard a\.tar has two labels for sample 1$"),
        ({"1__png": deep(4)}, r"^shard a\.tar: 1\.png is not a readable image \(more than 8 bits per channel\)$"),
        ({"1__png": png(4), "1__cls": b"0", "2__png": png(4)}, r"^only some samples of .* have a label"),
        ({}, r"^the shards of .*set have no sample: a\.tar holds nothing$"),
    ],
)
def test_indexing_refuses_with_one_sentence(tmp_path, members, sentence):
    url = tar(tmp_path / "set", **members)
    with pytest.raises(DataError, match=sentence):
        index_shards(url)
    assert storage.names(url) == ["a.tar"]


def test_indexing_finds_a_shard_cut_anywhere(tmp_path):
    url = tar(tmp_path / "set", **{f"{i}__png": png(4) for i in range(3)})
    whole = (tmp_path / "set" / "a.tar").read_bytes()
    for cut in (0, 100, 512, 700, 1024, 1536, 2048, 3072):  # 1024, 2048 and 3072 lie between two members
        (tmp_path / "set" / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"^shard a\.tar is (truncated|empty)"):
            index_shards(url)
    (tmp_path / "set" / "a.tar").write_bytes(whole[:1024] + b"\x07" * 512 + whole[1536:])
    with pytest.raises(
        DataError, match=r"^shard a\.tar is truncated or damaged: its end mark is missing at byte 1024$"
    ):
        index_shards(url)
    (tmp_path / "set" / "a.tar").write_bytes(b"\x1f\x8b not a tar" * 100)
    with pytest.raises(DataError, match=r"^shard a\.tar is compressed \(gzip\), whatever its name says"):
        index_shards(url)


def test_a_shard_that_the_reader_refuses_by_name_is_refused(tmp_path):
    url = tar(tmp_path / "set", **{"1__png": png(4)})
    (tmp_path / "set" / "a.tar").rename(tmp_path / "set" / "a:b.tar")
    with pytest.raises(DataError, match=r"holds a shard 'a:b\.tar': a name without ':' and '\\' is needed, rename it$"):
        index_shards(url)


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (
            {"name": "b.png", "type": tarfile.LNKTYPE, "linkname": "a.png"},
            r"^shard a\.tar holds 'b\.png', a link or another thing that is not a",
        ),
        ({"name": "b\udcff.png"}, r"^shard a\.tar holds 'b\\udcff\.png': names of samples must be UTF-8$"),
    ],
)
def test_links_and_names_that_are_no_text_are_refused(tmp_path, member, sentence):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for fields in ({"name": "a.png"}, member):
            info = tarfile.TarInfo()
            for name, value in fields.items():
                setattr(info, name, value)
            info.size = len(png(4)) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(png(4)))
    with pytest.raises(DataError, match=sentence):
        index_shards(str(tmp_path))


def test_names_of_two_lines_are_names(tmp_path):
    url = tar(tmp_path / "set", **{"a\nb/1__png": png(4)})
    assert index_shards(url)["count"] == 1 and open_dataset(url).key(0) == "a\nb/1"


def test_a_size_that_no_file_has_is_one_sentence(tmp_path):
    url = tar(tmp_path / "set", **{"1__png": png(4)})
    whole = bytearray((tmp_path / "set" / "a.tar").read_bytes())
    for field in (b"\xff" * 12, b"\x80" + b"\x7f" * 11):  # base 256: -1, and more than any offset
        whole[124:136] = field
        header = bytearray(whole[:512])
        header[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "set" / "a.tar").write_bytes(whole)
        with pytest.raises(DataError, match=r"^shard a\.tar is truncated"):
            index_shards(url)


def test_a_folder_called_like_a_shard_is_one_sentence(tmp_path):
    url = tar(tmp_path / "set", **{"1__png": png(4)})
    (tmp_path / "set" / "b.tar").mkdir()
    with pytest.raises(DataError, match=r"^shard b\.tar is a folder, not a tar file$"):
        index_shards(url)


def test_a_half_prepared_folder_is_not_indexed(tmp_path):
    url, division = str(tmp_path / "set"), divide(numbered(10), per_shard=2)
    begin(url, division)
    write_shards(url, numbered(10), division, part=(1, 2))
    before = storage.names(url)
    with pytest.raises(
        DataError, match=r"set was not finished, so it holds a part of its shards: repeat the command that prepares it$"
    ):
        index_shards(url)
    assert storage.names(url) == before


def test_an_empty_source_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="numbered is empty: there is nothing to write"):
        write_dataset(str(tmp_path / "set"), numbered(0))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no shards; files that end in \.tar are indexed"):
        index_shards(str(tmp_path / "none"))


def test_a_source_that_breaks_its_word_is_refused_and_leaves_no_index(tmp_path):
    source = numbered(5)
    object.__setattr__(source, "image_size", 8)
    with pytest.raises(DataError, match=r"of numbered is \(4, 4, 1\) uint8, not \(8, 8, 1\) uint8"):
        write_dataset(str(tmp_path), source)
    assert "index.json" not in storage.names(str(tmp_path))


def test_names_that_climb_out_of_the_folder_write_nothing(tmp_path):
    url = tar(tmp_path / "set", **{"../../evil__png": png(4)})
    index_shards(url)
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.rglob("*") if p.is_file()}
    dataset = open_dataset(url)
    assert dataset.key(0) == "../../evil" and dataset.image(0).shape == (4, 4, 3)
    assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    url = tar(tmp_path / "set", **{"1__jpg" if mode == "CMYK" else "1__png": buffer.getvalue()})
    index_shards(url)
    want = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    assert np.array_equal(open_dataset(url).image(0), np.asarray(want))


def test_small_data_sets_are_decoded_once(dataset, monkeypatch):
    kept = open_dataset(dataset.url)
    want = kept.images(range(50))
    monkeypatch.setattr(kept, "_read", None)
    assert kept.images(range(50)).equal(want) and dataset.images(range(50)).equal(want)
