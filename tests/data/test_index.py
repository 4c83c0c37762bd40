"""A damaged index is a sentence when the data set is opened, whatever is wrong in it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from cmdist.data.images import open_dataset
from cmdist.data.preparing.shards import write_dataset
from cmdist.errors import CmdistError, DataError
from conftest_data import numbered

Tree = dict[str, Any]
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("prepared")
    write_dataset(str(folder), numbered(20), per_shard=10)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(files: dict[str, bytes], folder: Path, index: Callable[[Tree], object], arrays: Callable[[Arrays], object]):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with np.load(io.BytesIO(files["index.npz"])) as found:
        columns = dict(found)
    arrays(columns)
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    (folder / "index.npz").write_bytes(buffer.getvalue())
    tree = json.loads(files["index.json"])
    tree["samples"]["checksum"] = "xxh3:" + xxhash.xxh3_128_hexdigest(buffer.getvalue())
    index(tree)
    (folder / "index.json").write_text(json.dumps(tree))
    return str(folder)


def put(tree: Tree, *path: Any) -> None:
    *sections, leaf, value = path
    for section in sections:
        tree = tree[section]
    tree[leaf] = value


VALUES = (None, -1, 1.5, "x", [], {}, True, [None], 2**70)
KEYS = [
    ("image_size",), ("channels",), ("classes",), ("labelled",), ("count",), ("samples",), ("samples", "checksum"),
    ("shards",), ("shards", 0), ("shards", 1, "name"), ("shards", 0, "size"), ("shards", 0, "count"), ("name",),
]  # fmt: skip


@pytest.mark.parametrize("path", KEYS, ids=[".".join(map(str, path)) for path in KEYS])
def test_a_wrong_value_in_the_index_is_a_sentence(prepared: dict[str, bytes], tmp_path: Path, path: tuple[Any]) -> None:
    for value in VALUES:
        url = changed(prepared, tmp_path, lambda tree, value=value: put(tree, *path, value), lambda arrays: None)
        allowed = path in (("classes",), ("name",), ("labelled",)) and isinstance(value, type(put_of(prepared, path)))
        if allowed and path != ("classes",):
            continue
        with pytest.raises(CmdistError) as caught:
            open_dataset(url)
        assert str(tmp_path) in str(caught.value), (path, value)


def put_of(files: dict[str, bytes], path: tuple[Any, ...]) -> Any:
    tree = json.loads(files["index.json"])
    for part in path:
        tree = tree[part]
    return tree


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: put(a, "offsets", a["offsets"] - 10**6), r"sample 0 lies at bytes -\d+ to"),
        (lambda a: put(a, "lengths", a["lengths"] * 2**40), "sample 0 lies at bytes"),
        (lambda a: put(a["lengths"], 3, -5), "sample 3 lies at bytes"),
        (lambda a: put(a["offsets"], 3, 2**63 - 1), "sample 3 lies at bytes"),
        (lambda a: put(a, "offsets", a["offsets"].astype(float)), "offsets holds float64"),
        (lambda a: put(a, "labels", a["labels"].astype(object)), "holds objects"),
        (lambda a: put(a, "keys", a["keys"].astype(str)), "keys holds <U"),
        (lambda a: put(a, "checksums", a["checksums"][:5]), r"checksums has the shape \[5\], and \[20\] is needed"),
        (lambda a: a.pop("keys"), "keys is missing"),
        (lambda a: put(a["labels"], 7, 10), "sample 7 has the label 10, and index.json names 10 classes"),
        (lambda a: put(a["labels"], 2, -1), "sample 2 has the label -1"),
    ],
)
def test_a_wrong_column_is_a_sentence(prepared: dict[str, bytes], tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(DataError, match=r"index\.npz is damaged: .*" + says):
        open_dataset(changed(prepared, tmp_path, lambda tree: None, change))


def test_nothing_changed_opens(prepared: dict[str, bytes], tmp_path: Path) -> None:
    assert len(open_dataset(changed(prepared, tmp_path, lambda tree: None, lambda arrays: None))) == 20
