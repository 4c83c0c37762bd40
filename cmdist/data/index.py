"""The index of a data set: index.json says what the set and its shards are, index.npz where each sample lies."""

import json
import re
from typing import Annotated, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from cmdist import migrations
from cmdist.errors import DataError
from cmdist.system import storage
from cmdist.system.typed import Arrays, Document, PlainName, Shape, array, arrays_of

FORMAT = migrations.INDEX.format
INDEX, SAMPLES, PREPARING = "index.json", "index.npz", "preparing.json"
SHARD_NAME = re.compile(r"[^/\\:\0]+\.tar", re.IGNORECASE)
REMEDY = "restore it, or prepare the data set again (pipelines/prepare_data.py)"

Count = Annotated[int, Field(ge=0, lt=2**62)]
_KINDS = {"keys": "S", "offsets": "i", "lengths": "i", "checksums": "u", "labels": "i"}


def _shard_name(name: str) -> str:
    if not SHARD_NAME.fullmatch(name):
        raise ValueError("a plain file name that ends in .tar")
    return name


class _File(Shape):
    file: PlainName
    checksum: str


class _Shard(Shape):
    name: Annotated[str, AfterValidator(_shard_name)]
    size: Count
    checksum: str
    count: Count


class _Samples(Shape):
    checksum: str


class _Index(Shape):
    name: str
    image_size: Annotated[int, Field(gt=0, le=2**16)]
    channels: Annotated[int, Field(gt=0, le=2**10)]
    transform: str
    classes: list[str]
    labelled: bool
    count: Count
    samples: _Samples
    shards: list[_Shard]
    extractor: _File | None = None
    origin: dict[str, str | int] | None = None  # what tells whether the source has changed, and how images were treated
    encoding: str | None = None


_DOCUMENT = Document(_Index, DataError, REMEDY)


def read(url: str) -> tuple[dict[str, Any], bytes]:
    """What index.json says, and the content of index.npz, whose checksum is right. Raises DataError."""
    if not storage.exists(storage.join(url, INDEX)):
        if storage.exists(storage.join(url, PREPARING)):
            raise DataError(f"the preparation of {url} was not finished; run pipelines/prepare_data.py again")
        raise DataError(f"there is no data set at {url}: {INDEX} is missing; make one with pipelines/prepare_data.py")
    index, where = _read_json(url), storage.join(url, SAMPLES)
    try:
        data = storage.read(where)
    except FileNotFoundError as error:
        raise DataError(f"{where} is missing") from error
    if "xxh3:" + xxhash.xxh3_128_hexdigest(data) != index["samples"]["checksum"]:
        raise DataError(f"{where} does not match {INDEX}: its checksum is another")
    return index, data


def _read_json(url: str) -> dict[str, Any]:
    where = storage.join(url, INDEX)
    index = _DOCUMENT.tree(storage.read(where), where)
    if "format" not in index:
        raise DataError(f"{where} is not an index of a data set")
    # its own `format` stays: it is part of the index's hash
    index = index | _DOCUMENT.check(migrations.INDEX.migrate(index, where), where)
    if not index["shards"] or not index["count"]:
        raise DataError(f"the data set at {url} is empty")
    names = [shard["name"] for shard in index["shards"]]
    if twice := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
        raise DataError(f"{where} is damaged: it names shard {twice[0]} twice; {REMEDY}")
    return index


def samples(url: str, index: dict[str, Any], content: bytes) -> dict[str, NDArray[Any]]:
    """The columns of index.npz, an entry for each sample. Raises DataError if they are not those of the shards."""
    where = storage.join(url, SAMPLES)
    arrays = arrays_of(content, where, DataError, REMEDY)
    try:
        columns = _columns(arrays, index)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}; {REMEDY}") from error
    return columns


def _columns(arrays: Arrays, index: dict[str, Any]) -> dict[str, NDArray[Any]]:
    n = index["count"]
    counts = np.array([shard["count"] for shard in index["shards"]], np.int64)
    if counts.max() > n or int(counts.sum()) != n:
        raise ValueError(f"{INDEX} says {n} samples, and its shards have {counts.sum()}")
    columns = {name: array(arrays, name, kind, (n,)) for name, kind in _KINDS.items()}
    columns |= {name: columns[name].astype(np.int64) for name in ("offsets", "lengths", "labels")}
    columns["checksums"] = columns["checksums"].astype(np.uint64)
    sizes = np.repeat(np.array([shard["size"] for shard in index["shards"]], np.int64), counts)
    offsets, lengths = columns["offsets"], columns["lengths"]
    outside = (offsets < 0) | (lengths <= 0) | (offsets > sizes) | (lengths > sizes - offsets)
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(
            f"sample {i} lies at bytes {offsets[i]} to {int(offsets[i]) + int(lengths[i])} of a shard of {sizes[i]} "
            f"bytes, as {INDEX} has it"
        )
    labels, classes = columns["labels"], len(index["classes"])
    strange = (labels < 0) | (labels >= classes)
    if index["labelled"] and strange.any():
        i = int(strange.argmax())
        raise ValueError(f"sample {i} has the label {labels[i]}, and {INDEX} names {classes} classes")
    return columns


def identity_text(index: dict[str, Any]) -> str:
    """What the identity of a data set is a hash of: the index without what changes no sample (name, extractor, who
    made it of what).
    """
    told = ("name", "extractor", "prepared", "origin")
    identity = {key: value for key, value in index.items() if key not in told}
    return json.dumps(identity, sort_keys=True)
