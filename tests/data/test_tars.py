"""Point A.2(a): tars one behind the other."""

import io

import numpy as np
import pytest

from cmdist.data.images import open_dataset
from cmdist.data.preparing.indexing import index_shards
from cmdist.data.preparing.sources.imagenet import imagenet
from cmdist.data.tars import members
from cmdist.errors import DataError
from conftest_data import encoded, photo, png, tar_of


def shard(path, first, count):
    pictures = [(f"{i:03d}.png", encoded(photo(i, 8, 8), "PNG")) for i in range(first, first + count)]
    return tar_of(path, pictures).read_bytes()


def test_a2a_every_sample_of_concatenated_tars_is_indexed_and_read(tmp_path):
    (tmp_path / "set").mkdir()
    parts = [shard(tmp_path / f"{n}.tar", 40 * n, 40) for n in range(3)]
    (tmp_path / "set" / "a.tar").write_bytes(b"".join(parts) + bytes(3 * 2**20))  # zeros fill up
    assert index_shards(str(tmp_path / "set"))["count"] == 120
    dataset = open_dataset(str(tmp_path / "set"), memory=0)
    assert all(np.array_equal(dataset.image(i), np.asarray(photo(i, 8, 8))) for i in range(120))
    assert [dataset.key(i) for i in (0, 40, 119)] == ["000", "040", "119"]


def test_a2a_concatenated_synsets_are_read_within_their_tar(tmp_path):
    files = [(f"{i}.JPEG", encoded(photo(i, 64, 64))) for i in range(4)]
    halves = [tar_of(tmp_path / f"{n}.tar", files[2 * n : 2 * n + 2]).read_bytes() for n in range(2)]
    outer = tar_of(tmp_path / "train.tar", [("n00000001.tar", b"".join(halves)), ("n00000002.tar", halves[0])])
    source = imagenet(outer, 64, 2)
    assert source.count == 6 and source.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert np.array_equal(source.image(3), np.asarray(photo(3, 64, 64))) is False  # JPEG
    assert np.abs(source.image(3).astype(int) - np.asarray(photo(3, 64, 64))).mean() < 4


@pytest.mark.parametrize(
    ("tail", "sentence"),
    [
        (b"words, no tar" * 100, r"a\.tar is truncated or damaged: its end mark is missing at byte 10240$"),
        (lambda whole: whole[:700], r"a\.tar is truncated"),
    ],
)
def test_a2a_what_follows_an_end_mark_and_is_no_whole_tar_is_refused(tmp_path, tail, sentence):
    whole = shard(tmp_path / "one.tar", 0, 2)
    data = whole + (tail(whole) if callable(tail) else tail)
    with pytest.raises(DataError, match=sentence):
        members(io.BytesIO(data), "a.tar")


def test_a2a_zeros_behind_a_tar_are_nothing(tmp_path):
    whole = tar_of(tmp_path / "a.tar", [("1.png", png(4))]).read_bytes()
    for data in (whole, whole + bytes(700), whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512]):
        assert [m.name for m in members(io.BytesIO(data), "a.tar")] == ["1.png"]
