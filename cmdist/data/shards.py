"""The data set folder: WebDataset shards (tar files of key.png, key.cls), index.npz (where each image lies) and index.json, written last.

A folder without index.json is no data set. Tars are never unpacked, and only image and label members are ever looked into.
"""

import io
import json
import mmap
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset as wds
import xxhash
from numpy.typing import NDArray

from cmdist import storage
from cmdist.data.cache import checksum_of
from cmdist.data.datasets import Source
from cmdist.data.decode import EXTENSIONS, BadImageError, encode_png, size_of
from cmdist.data.images import FORMAT, INDEX, PREPARING, SAMPLES, ShardedImages, open_dataset
from cmdist.data.order import permutation
from cmdist.errors import DataError

__all__ = ["ShardedImages", "index_shards", "open_dataset", "write_dataset"]

PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "npy", "joblib", "dill")
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # WebDataset's rule: the key ends at the first dot of the base name

Progress = Callable[[int], object]  # called with the number of images done since the last call


class Scan(NamedTuple):
    """What is known of a shard that was read once."""

    entry: dict[str, Any]  # name, size, checksum, count: as in the index
    samples: dict[str, NDArray[Any]]  # keys, offsets, lengths, checksums, labels (-1: none); one entry for each sample
    image_size: int


def write_dataset(
    url: str,
    source: Source,
    *,
    seed: int = 0,
    per_shard: int = 5000,
    extractor: dict[str, Any] | None = None,
    prepared: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a source as shards of equal size (within one image), shuffled once by `seed`, and return the index.

    The same arguments give the same bytes. `extractor` (a file that lies there already) and `prepared` (what made this) go into the
    index as they are. Raises DataError for an empty source or an image that is not what the source says.
    """
    if source.count == 0:
        raise DataError(f"{source.name} is empty: there is nothing to write to {url}")
    order = permutation(source.count, seed, "write")
    scans: list[Scan] = []
    with tempfile.TemporaryDirectory(prefix="cmdist-") as temporary:
        for number, ids in enumerate(np.array_split(order, -(-source.count // per_shard))):
            path = Path(temporary) / f"shard-{number:06d}.tar"
            with open(path, "wb") as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for i in ids.tolist():
                    tar.write(_sample(source, i))
                    if progress:
                        progress(1)
            scans.append(scan_shard(path, source.image_size))
            storage.upload(path, storage.join(url, path.name))
            path.unlink()
    described = {
        "name": source.name,
        "image_size": source.image_size,
        "channels": source.channels,
        "transform": source.transform,
        "classes": list(source.classes),
        "labelled": source.labels is not None,
        "extractor": extractor,
        "prepared": prepared,
    }
    return _write_index(url, described, scans)


def _sample(source: Source, i: int) -> dict[str, Any]:
    pixels, expected = source.image(i), (source.image_size, source.image_size, source.channels)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise DataError(f"image {i} of {source.name} is {pixels.shape} {pixels.dtype}, not {expected} uint8")
    sample = {"__key__": f"{i:08d}", "png": encode_png(pixels)}
    if source.labels is not None:
        sample["cls"] = str(int(source.labels[i])).encode()
    return sample


def index_shards(
    url: str, *, name: str = "shards", channels: int = 3, classes: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, Any]:
    """Make a data set of WebDataset shards that are there already (all .tar files of a folder): read them, write the index beside them.

    Labels are the numbers in the .cls members, if there are any. Raises DataError for shards that are empty, truncated or damaged,
    members that are pickles, samples without image or label, images of several sizes, and a folder that has an index.
    """
    names = [n for n in storage.names(url) if n.endswith(".tar")]
    if storage.exists(storage.join(url, INDEX)):
        raise DataError(f"{url} has an {INDEX} already; remove it to index the shards again")
    if not names:
        raise DataError(f"{url} holds no shards; files that end in .tar are indexed")
    scans: list[Scan] = []
    local = storage.local_path(url)
    with tempfile.TemporaryDirectory(prefix="cmdist-") as temporary:
        for shard in names:
            path = local / shard if local else Path(temporary) / shard
            if not local:
                storage.download(storage.join(url, shard), path)
            scans.append(scan_shard(path, scans[0].image_size if scans else None))
            if progress:
                progress(scans[-1].entry["count"])
            if not local:
                path.unlink()
    labels = np.concatenate([scan.samples["labels"] for scan in scans])
    labelled = bool((labels >= 0).all())
    if not labelled and (labels >= 0).any():
        raise DataError(f"only some samples of {url} have a label (.cls member): either all must or none")
    needed = int(labels.max()) + 1 if labelled else 0
    if classes and len(classes) < needed:
        raise DataError(f"{len(classes)} class names were given for {url}, but there is a label {needed - 1}")
    described = {
        "name": name,
        "image_size": scans[0].image_size,
        "channels": channels,
        "transform": "as in the shards",
        "classes": list(classes) or [str(c) for c in range(needed)],
        "labelled": labelled,
        "extractor": None,
        "prepared": None,
    }
    return _write_index(url, described, scans)


def scan_shard(path: Path, size: int | None) -> Scan:
    """Read a shard once; every image's header is looked at. With `size` None, all must be as large as the first. Raises DataError."""
    found: dict[str, dict[str, Any]] = {}
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DataError(f"shard {path.name} is empty: a file of 0 bytes") from error
        with data:
            for name, offset, length in _members(path, data):
                match = _MEMBER.fullmatch(name)
                if match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if extension.rsplit(".", 1)[-1] in PICKLES:
                    raise DataError(
                        f"shard {path.name} holds {name}: members that may run code when read ({', '.join(PICKLES)}) are refused"
                    )
                sample = found.setdefault(key, {})
                if extension == "cls":
                    sample["label"] = _label(path, name, data[offset : offset + length])
                elif extension in EXTENSIONS:
                    if "offset" in sample:
                        raise DataError(f"shard {path.name} has two images for sample {key}")
                    size = _check_image(path, name, data[offset : offset + length], size)
                    with memoryview(data)[offset : offset + length] as view:
                        sample.update(offset=offset, length=length, checksum=xxhash.xxh3_64_intdigest(view))
    for key, sample in found.items():
        if "offset" not in sample:
            raise DataError(f"shard {path.name}: sample {key} has no image member (one that ends in {', '.join(EXTENSIONS)})")
    if not found:
        raise DataError(f"shard {path.name} is empty: it has no sample")
    entry = {"name": path.name, "size": path.stat().st_size, "checksum": checksum_of(path), "count": len(found)}
    rows = list(found.values())
    samples = {
        "keys": np.array([key.encode() for key in found]),
        "offsets": np.array([row["offset"] for row in rows], np.int64),
        "lengths": np.array([row["length"] for row in rows], np.int64),
        "checksums": np.array([row["checksum"] for row in rows], np.uint64),
        "labels": np.array([row.get("label", -1) for row in rows], np.int64),
    }
    assert size is not None
    return Scan(entry, samples, size)


def _members(path: Path, data: mmap.mmap) -> list[tuple[str, int, int]]:
    """(name, offset, length) of the regular files in a tar. tarfile takes an archive cut between two members for a whole one: we don't."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"shard {path.name} is truncated or no tar file: {error}") from error
    if data[end : end + 512] != bytes(512):
        raise DataError(f"shard {path.name} is truncated or damaged: its end mark is missing at byte {end}")
    return [(m.name, m.offset_data, m.size) for m in members if m.isreg() and not m.issparse()]


def _label(path: Path, name: str, data: bytes) -> int:
    if not data.strip().isdigit():
        raise DataError(f"shard {path.name}: {name} must hold a class number of 0 or more, not {data[:20]!r}")
    return int(data)


def _check_image(path: Path, name: str, data: bytes, size: int | None) -> int:
    try:
        width, height = size_of(data)
    except BadImageError as error:
        raise DataError(f"shard {path.name}: {name} {error}") from error
    size = size or width
    if (width, height) != (size, size):
        raise DataError(f"shard {path.name}: {name} is {width}x{height}, not {size}x{size}")
    return size


def _write_index(url: str, described: dict[str, Any], scans: list[Scan]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.concatenate([scan.samples[name] for scan in scans]) for name in scans[0].samples})  # type: ignore[arg-type]
    storage.write(storage.join(url, SAMPLES), buffer.getvalue())
    shards = [scan.entry for scan in scans]
    index = {
        "format": FORMAT,
        **described,
        "count": sum(entry["count"] for entry in shards),
        "samples": {"file": SAMPLES, "checksum": "xxh3:" + xxhash.xxh3_128_hexdigest(buffer.getvalue())},
        "shards": shards,
    }
    storage.write(storage.join(url, INDEX), json.dumps(index, indent=1).encode())
    if storage.exists(storage.join(url, PREPARING)):
        storage.remove(storage.join(url, PREPARING))
    return index
