"""CIFAR-10 (Krizhevsky, 2009), as published: the binary version, or the pickled one, in a folder or a .tar.gz."""

import gzip
import io
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from cmdist.data.preparing.sources.base import Source, refuse_irregular, refuse_unsafe
from cmdist.errors import DataError

SIDE, CLASSES, RECORDS = 32, 10, 10_000  # images in each file
ROW = 3 * SIDE * SIDE
FILES = {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)}
_LONGEST = 2**26  # bytes of one file in the archive; the real ones have 31 MB
_MOST = 2**30  # bytes of the whole archive, expanded

# What numpy arrays and byte strings in pickles of Python 2 and 3 are made of, and nothing that could do anything else.
_ALLOWED = {
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def cifar10(path: str | Path, split: str = "train", records: int = RECORDS) -> Source:
    """50,000 training or 10,000 test images, 32x32 RGB, kept in memory (150 MB).
    The published files have 10,000 `records` each.

    Raises DataError for missing or truncated files, other labels than 0 ... 9, pickles that name anything but numpy
    arrays, and archives with links or unsafe names.
    """
    root = Path(path)
    files = _from_folder(root) if root.is_dir() else _from_archive(root)
    binary = any(name.endswith(".bin") for name in files)
    blocks = []
    for name in FILES[split]:
        name += ".bin" if binary else ""
        if name not in files:
            raise DataError(
                f"{root} has no {name}; CIFAR-10's {split} images are in {', '.join(FILES[split])} (.bin "
                "in the binary version)"
            )
        blocks.append((_binary if binary else _pickled)(f"{root}/{name}", files[name], records))
    meta = "batches.meta.txt" if binary else "batches.meta"
    if meta not in files:
        raise DataError(f"{root} has no {meta}, which names the classes")
    pixels, labels = np.concatenate([rows for rows, _ in blocks]), np.concatenate([labels for _, labels in blocks])
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{root}: labels go from {labels.min()} to {labels.max()}; those of CIFAR-10 go from 0 to 9")
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Source(
        name="cifar10" if split == "train" else f"cifar10-{split}",
        image_size=SIDE,
        channels=3,
        transform="none",
        count=len(images),
        image=lambda i: np.ascontiguousarray(images[i]),
        labels=labels,
        classes=_names(f"{root}/{meta}", files[meta], binary),
        fingerprint=xxhash.xxh3_128_hexdigest(pixels.tobytes()),
    )


def _wanted(name: str) -> bool:
    stem = name.removesuffix(".bin")
    return stem in (*FILES["train"], *FILES["test"]) or name in ("batches.meta", "batches.meta.txt")


def _from_folder(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if _wanted(path.name) and path.is_file()}


def _from_archive(root: Path) -> dict[str, bytes]:
    files = {}
    refuse_irregular(root)
    try:
        with (
            _expanded(root) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as tar,
        ):  # a stream, so that bytes are counted as they come
            for member in tar:
                refuse_unsafe(member.name, root)
                if member.islnk() or member.issym():
                    raise DataError(f"{root} holds a link '{member.name}': links are refused")
                if member.size > _LONGEST or tar.offset > _MOST:
                    raise DataError(
                        f"{root} expands to more than CIFAR-10 has, at its member '{member.name}'; "
                        "give the published archive"
                    )
                name = PurePosixPath(member.name).name
                if member.isreg() and _wanted(name):
                    content = tar.extractfile(member)
                    assert content is not None
                    files[name] = content.read()
            while stream.read(2**20):  # to the end, where gzip's checksum is
                if stream.tell() > _MOST:
                    raise DataError(
                        f"{root} expands to more than CIFAR-10 has, after its end mark; give the published archive"
                    )
    except FileNotFoundError as error:
        raise DataError(f"{root} is not there; give the folder or the .tar.gz of CIFAR-10's binary version") from error
    except DataError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{root} is truncated or no tar file: {error}") from error
    return files


def _expanded(root: Path) -> gzip.GzipFile | BinaryIO:
    """The archive, without its gzip; tarfile itself would not look at gzip's checksum."""
    with open(root, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(root) if gzipped else open(root, "rb")


def _binary(where: str, data: bytes, records: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if len(data) != records * (1 + ROW):
        raise DataError(
            f"{where} has {len(data)} bytes, not {records * (1 + ROW)}: {records} images of {1 + ROW} bytes"
        )
    rows = np.frombuffer(data, np.uint8).reshape(records, 1 + ROW)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _pickled(where: str, data: bytes, records: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(where, data)
    rows, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(rows, np.ndarray) or rows.shape != (records, ROW) or rows.dtype != np.uint8:
        raise DataError(f"{where}: data is not an array ({records}, {ROW}) of uint8")
    if (
        not isinstance(labels, list)
        or len(labels) != records
        or not all(isinstance(n, int) and 0 <= n < CLASSES for n in labels)
    ):
        raise DataError(f"{where}: labels is not a list of {records} integers from 0 to {CLASSES - 1}")
    return rows, np.array(labels, np.int64)


class _Restricted(pickle.Unpickler):
    """Only dictionaries, lists, numbers, bytes and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"names {module}.{name}; only numpy arrays are read from a pickle, use CIFAR-10's binary version"
            )
        return _ALLOWED[module, name]


def _unpickle(where: str, data: bytes) -> dict[bytes, Any]:
    try:
        batch = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise DataError(f"{where} is truncated or no pickle: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{where} holds no dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}


def _names(where: str, data: bytes, binary: bool) -> tuple[str, ...]:
    lines = data.splitlines() if binary else _unpickle(where, data).get(b"label_names", [])
    if not isinstance(lines, list) or not all(isinstance(name, (bytes, str)) for name in lines):
        raise DataError(f"{where}: label_names is not a list of names")
    texts = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in lines]
    names = tuple(text.strip() for text in texts if text.strip())
    if len(names) != CLASSES:
        raise DataError(f"{where} names {len(names)} classes, not {CLASSES}")
    return names
