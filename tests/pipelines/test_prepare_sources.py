"""Each source through the command, from files in their published formats to images that the reader gives."""

import functools
import importlib.util
from pathlib import Path

import lmdb
import numpy as np
import pytest

from cmdist.data.cache import Cache
from cmdist.data.images import open_dataset
from cmdist.errors import DataError
from conftest_data import cropped, encoded, photo, tar_of


@pytest.fixture
def prepare_data():
    spec = importlib.util.spec_from_file_location(
        "prepare_data", Path(__file__).parents[2] / "pipelines" / "prepare_data.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lsun(path):
    values = {f"{i:040x}".encode(): encoded(photo(i, 300, 256 + i), "WEBP") for i in range(6)}
    environment = lmdb.open(str(path / "cat_lmdb"), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    return [path / "cat_lmdb", "--size", "128"], [cropped(values[key], 128) for key in sorted(values)], None


def imagenet(path):
    files = {
        f"n{s:08d}": {f"n{s:08d}_{i}.JPEG": encoded(photo(s + i, 100 + i, 80)) for i in range(3)} for s in (20, 10)
    }
    inner = [
        (f"{synset}.tar", tar_of(path / f"{synset}.tar", members.items()).read_bytes())
        for synset, members in files.items()
    ]
    images = [cropped(files[synset][name], 64) for synset in sorted(files) for name in sorted(files[synset])]
    return [tar_of(path / "train.tar", inner), "--synsets", "2"], images, [0, 0, 0, 1, 1, 1]


def imagenet64(path):
    rows, labels = np.random.default_rng(0).integers(0, 256, (6, 12288), np.uint8), np.array([1, 1000, 3, 3, 7, 2])
    np.savez(path / "train_data_batch_1.npz", data=rows[:4], labels=labels[:4], mean=np.zeros(12288))
    np.savez_compressed(path / "train_data_batch_2.npz", data=rows[4:], labels=labels[4:], mean=np.zeros(12288))
    return (
        [path, "--batches", "2"],
        [np.stack([row[:4096], row[4096:8192], row[8192:]], -1).reshape(64, 64, 3) for row in rows],
        labels - 1,
    )


def cifar10(path):
    draw = np.random.default_rng(0)
    rows, labels = draw.integers(0, 256, (50, 3, 32, 32), np.uint8), draw.integers(0, 10, 50)
    records = np.concatenate([labels[:, None].astype(np.uint8), rows.reshape(50, -1)], axis=1)
    (path / "test_batch.bin").write_bytes(records.tobytes())
    (path / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return [path, "--split", "test", "--format", "raw"], rows.transpose(0, 2, 3, 1), labels


@pytest.mark.parametrize("source", [lsun, imagenet, imagenet64, cifar10])
def test_what_the_reader_gives_is_what_the_published_files_hold(prepare_data, tmp_path, monkeypatch, source):
    maker, names = prepare_data.SOURCES["cifar10"]
    small = functools.partial(maker, records=50)  # the published files have 10,000
    monkeypatch.setitem(prepare_data.SOURCES, "cifar10", (small, names))
    (tmp_path / "in").mkdir()
    arguments, images, labels = source(tmp_path / "in")
    command = [source.__name__, *map(str, arguments), "--workers", "2", "--per-shard", "2", "--out"]
    prepare_data.main([*command, str(tmp_path / "out")])
    dataset = open_dataset(str(tmp_path / "out"))
    assert len(dataset) == len(images)
    for i in range(len(dataset)):
        assert np.array_equal(dataset.image(i), images[int(dataset.key(i))])
    if labels is not None:
        assert dataset.labels(range(len(dataset))).tolist() == [
            labels[int(dataset.key(i))] for i in range(len(dataset))
        ]
    assert dataset.labelled == (labels is not None)
    with pytest.raises(DataError, match="was prepared with other arguments"):
        prepare_data.main([*command, str(tmp_path / "out"), "--format", "png"])


def test_a_remote_folder_in_memory(prepare_data, tmp_path):
    arguments, images, _ = lsun(tmp_path)
    url = f"memory://{tmp_path.name}/out"
    prepare_data.main(["lsun", *map(str, arguments), "--workers", "1", "--per-shard", "4", "--out", url])
    dataset = open_dataset(url, Cache(tmp_path / "cache"))
    assert all(np.array_equal(dataset.image(i), images[int(dataset.key(i))]) for i in range(6))
