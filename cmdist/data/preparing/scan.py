"""What is known of a shard that was read once: its entry in index.json, and where each of its samples lies."""

import contextlib
import json
import math
import mmap
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from cmdist.data.cache import checksum_of
from cmdist.data.decode import EXTENSIONS, RAW, BadImageError, size_of
from cmdist.data.preparing.sources.base import MOST_CLASSES
from cmdist.data.preparing.sources.pictures import ADM, load
from cmdist.data.tars import members
from cmdist.errors import DataError

PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "npy", "joblib", "dill")
_MEMBER = re.compile(
    r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL
)  # WebDataset's rule: the key ends at the first dot of the base name


PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # how such files begin


class Labels:
    """Where shards that are there already have their labels: in .cls members, or under a key of .json members, as
    numbers or as names of `classes`. `other` counts the .json members that were not read, `keys` are those of the
    first.
    """

    def __init__(self, key: str | None = None, classes: tuple[str, ...] = ()) -> None:
        self.key, self._numbers = key, {name: number for number, name in enumerate(classes)}
        self.other, self.keys = 0, list[str]()

    @property
    def extension(self) -> str:
        """Of the members that are read."""
        return "json" if self.key else "cls"

    def see(self, data: bytes) -> None:
        """Count a .json member that is not read."""
        self.other += 1
        if self.other == 1:
            with contextlib.suppress(ValueError, RecursionError):
                self.keys = list(json.loads(data))[:20]

    def read(self, path: Path, name: str, data: bytes) -> int:
        """The label in a member. Raises DataError."""
        if self.key is None:
            return _label(path, name, data)
        try:
            told = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"shard {path.name}: {name} is no JSON") from error
        value = told.get(self.key) if isinstance(told, dict) else None
        if isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_CLASSES:
            return value
        allowed = f"a class number from 0 to {MOST_CLASSES - 1}, or a name of --classes"
        raise DataError(f"shard {path.name}: {name} has {value!r:.50} under '{self.key}': {allowed} is needed")


class Scan(NamedTuple):
    """One shard."""

    entry: dict[str, Any]  # name, size, checksum, count: as in the index
    samples: dict[str, NDArray[Any]]  # keys, offsets, lengths, checksums, labels (-1: none); one entry for each sample
    image_size: int
    raw: bool  # whether its images are raw pixels


def scan_shard(
    path: Path,
    size: int | None,
    channels: int = 3,
    bad: list[str] | None = None,
    labels: Labels | None = None,
) -> Scan:
    """Read a shard once; every image's header is looked at. With `size` None, all must be as large as the first.

    With a list `bad` every image is decoded, samples whose image cannot be, or of which a part is missing, are left out
    and named there, and a shard may have no sample; without, it is ours and only its headers are looked at. Raw images
    have no header: theirs is the size of a square of `channels`. Raises DataError.
    """
    labels = labels or Labels()
    entries: dict[str, dict[str, Any]] = {}
    kinds: set[bool] = set()  # raw or not
    left_out: set[str] = set()
    if path.is_dir():
        raise DataError(f"shard {path.name} is a folder, not a tar file")
    if not path.is_file():  # a pipe would wait for who writes
        raise DataError(f"shard {path.name} is not a file")
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DataError(f"shard {path.name} is empty: a file of 0 bytes") from error
        if packed := next((kind for begin, kind in PACKED.items() if data[:8].startswith(begin)), None):
            data.close()
            raise DataError(
                f"shard {path.name} is compressed ({packed}), whatever its name says; samples are read at their "
                "places, so unpack it"
            )
        with data:
            for name, offset, length, regular in members(file, f"shard {path.name}"):
                match = _MEMBER.fullmatch(name)
                if match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if extension not in (*EXTENSIONS, RAW, labels.extension) and not regular:
                    continue
                if not regular:
                    raise DataError(
                        f"shard {path.name} holds '{name}', a link or another thing that is not a file: refused"
                    )
                if not name.isascii() and name != name.encode(errors="replace").decode():
                    raise DataError(f"shard {path.name} holds {name!a}: names of samples must be UTF-8")
                if extension.rsplit(".", 1)[-1] in PICKLES:
                    raise DataError(
                        f"shard {path.name} holds {name}: members that may run code "
                        f"when read ({', '.join(PICKLES)}) are refused"
                    )
                sample = entries.setdefault(key, {})
                if extension == labels.extension:
                    if "label" in sample:
                        raise DataError(f"shard {path.name} has two labels for sample {key}")
                    sample["label"] = labels.read(path, name, data[offset : offset + length])
                elif extension == "json":
                    labels.see(data[offset : offset + length])
                elif "." in extension and extension.rpartition(".")[2] in EXTENSIONS:
                    sample["dotted"] = name
                elif extension in (*EXTENSIONS, RAW):
                    if "offset" in sample:
                        raise DataError(f"shard {path.name} has two images for sample {key}")
                    kinds.add(extension == RAW)
                    if extension == RAW:
                        size = _check_raw(path, name, length, size, channels)
                    else:
                        try:
                            size = _check_image(path, name, data[offset : offset + length], size, bad is not None)
                        except BadImageError as error:
                            if bad is None:
                                raise
                            bad.append(str(error))
                            left_out.add(key)
                    with memoryview(data)[offset : offset + length] as view:
                        sample.update(offset=offset, length=length, checksum=xxhash.xxh3_64_intdigest(view))
    for key, sample in entries.items():
        if "offset" not in sample and "dotted" in sample:
            raise DataError(
                f"shard {path.name}: the image '{sample['dotted']}' has a dot too many; WebDataset ends a sample's "
                f"name at the first dot, so this is a member of sample {key}: rename it, e.g. with _ for the first dots"
            )
        if "offset" not in sample:
            raise DataError(
                f"shard {path.name}: sample {key} has no image member (one that ends in "
                f"{', '.join((*EXTENSIONS, RAW))})"
            )
    if not entries and bad is None:
        raise DataError(f"shard {path.name} is empty: it has no sample")
    entries = {key: sample for key, sample in entries.items() if key not in left_out}
    if not entries:
        return nothing(path.name, size or 0, kinds.pop() if kinds else False)
    if len(kinds) > 1:
        raise DataError(
            f"shard {path.name} holds raw images beside others: either all images of a data set are raw or none is"
        )
    entry = {"name": path.name, "size": path.stat().st_size, "checksum": checksum_of(path), "count": len(entries)}
    rows = list(entries.values())
    samples = {
        "keys": np.array([key.encode() for key in entries]),
        "offsets": np.array([row["offset"] for row in rows], np.int64),
        "lengths": np.array([row["length"] for row in rows], np.int64),
        "checksums": np.array([row["checksum"] for row in rows], np.uint64),
        "labels": np.array([row.get("label", -1) for row in rows], np.int64),
    }
    assert size is not None
    return Scan(entry, samples, size, kinds.pop())


def nothing(name: str, size: int, raw: bool) -> Scan:
    """What is known of a shard that was not written, since none of its images could be read."""
    kinds = {"keys": np.bytes_, "offsets": np.int64, "lengths": np.int64, "checksums": np.uint64, "labels": np.int64}
    samples: dict[str, NDArray[Any]] = {column: np.empty(0, kind) for column, kind in kinds.items()}
    return Scan({"name": name, "size": 0, "checksum": "", "count": 0}, samples, size, raw)


def _label(path: Path, name: str, data: bytes) -> int:
    digits = data.strip()
    if not digits.isdigit() or len(digits) > 20 or int(digits) >= MOST_CLASSES:
        raise DataError(
            f"shard {path.name}: {name} must hold a class number from 0 to {MOST_CLASSES - 1}, not {data[:20]!r}"
        )
    return int(digits)


def _check_image(path: Path, name: str, data: bytes, size: int | None, whole: bool) -> int:
    try:
        width, height = load(data, ADM)[0].size if whole else size_of(data)
    except BadImageError as error:
        raise BadImageError(f"shard {path.name}: {name} {error}") from error
    size = size or width
    if (width, height) != (size, size):
        raise DataError(f"shard {path.name}: {name} is {width}x{height}, not {size}x{size}")
    return size


def _check_raw(path: Path, name: str, length: int, size: int | None, channels: int) -> int:
    side = math.isqrt(length // channels)
    if not length or side * side * channels != length:
        raise DataError(f"shard {path.name}: {name} has {length} bytes, which are no square of {channels} channels")
    if side != (size or side):
        raise DataError(f"shard {path.name}: {name} is {side}x{side}, not {size}x{size}")
    return side
