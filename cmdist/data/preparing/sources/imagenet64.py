"""The official downsampled ImageNet64 (Chrabaszcz et al., 2017):
npz batches of 64x64 images, one row of channel-first bytes for each.

Its pixels are another variant than ADM's crop of the full images, and its label numbers follow map_clsloc.txt, not the
sorted synsets.
"""

import lzma
import re
import shutil
import struct
import tempfile
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from cmdist.data.preparing.sources.base import Source, changed_at, refuse_irregular
from cmdist.errors import DataError

SIDE, CLASSES, BATCHES = 64, 1000, 10
ROW = 3 * SIDE * SIDE
# what zipfile and numpy raise for damaged bytes; RuntimeError is that of encrypted members and unknown methods
_DAMAGED = (
    OSError,
    zipfile.BadZipFile,
    ValueError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,
    RuntimeError,
    TypeError,
)
_LINE = re.compile(r"(n\d{8})\s+(\d+)\s+\S+")


def imagenet64(path: str | Path, batches: int = BATCHES, class_map: str | Path | None = None) -> Source:
    """The images of train_data_batch_1.npz ... _10.npz in a folder, or of one npz file, e.g. val_data.npz.

    Uncompressed arrays are memory-mapped, so their checksums are not compared (`python -m zipfile -t FILE` does);
    compressed ones are first expanded into an unnamed temporary file: 15.7 GB for all of ImageNet64, in each job that
    prepares a part of it. With `class_map` (the devkit's map_clsloc.txt) labels become those of the sorted synsets, as
    in ADM; without, label k is the batches' number k + 1. Raises DataError for missing batches, and arrays of another
    shape, type or range.
    """
    root = Path(path)
    files = [root / f"train_data_batch_{n}.npz" for n in range(1, batches + 1)] if root.is_dir() else [root]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{file} is missing; give the folder of the {batches} files train_data_batch_N.npz "
                "(--batches says how many), "
                "or one npz file"
            )
    read = [_batch(file) for file in files]
    rows, labels = [data for data, _ in read], np.concatenate([labels for _, labels in read])
    ends = np.cumsum([len(data) for data in rows])
    classes = tuple(str(number) for number in range(1, CLASSES + 1))
    if class_map is not None:
        classes, label = _synsets(Path(class_map))
        labels = label[labels]

    def image(i: int) -> NDArray[np.uint8]:
        batch = int(np.searchsorted(ends, i, side="right"))
        row = rows[batch][i - (int(ends[batch - 1]) if batch else 0)]
        return np.ascontiguousarray(row.reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    return Source(
        name="imagenet64",
        image_size=SIDE,
        channels=3,
        transform="official downsampled ImageNet64",
        count=int(ends[-1]),
        image=image,
        labels=labels,
        classes=classes,
        fingerprint=" ".join(
            f"{file.name}:{file.stat().st_size}:{len(data)}" for file, data in zip(files, rows, strict=True)
        ),
        modified=changed_at([file.stat().st_mtime_ns for file in files]),
    )


def _batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows (n, 12288) and labels (n,) from 0 of one npz file."""
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(file) as archive:
            warnings.simplefilter("ignore", UserWarning)  # numpy's, of headers that it takes for Python 2's
            present = set(archive.namelist())
            for name in ("data", "labels"):
                if f"{name}.npy" not in present:
                    raise DataError(f"{file} has no array '{name}'; a batch of ImageNet64 has data and labels")
            shape = _header(archive, "data.npy", file)
            if len(shape[0]) != 2 or shape[0][1] != ROW or shape[1] or shape[2] != np.uint8:
                by_column = " stored column by column (Fortran order)" if shape[1] else ""
                raise DataError(
                    f"{file}: data is {shape[0]} {shape[2]}{by_column}, not (n, {ROW}) uint8, one row for each image"
                )
            n = shape[0][0]
            if not n:
                raise DataError(f"{file} is empty: data has no rows")
            labels_shape, _, kind = _header(archive, "labels.npy", file)
            if labels_shape != (n,) or kind.kind not in "iu":
                raise DataError(
                    f"{file}: labels is {labels_shape} {kind}, not ({n},) integers, one for each row of data"
                )
            data = _rows(archive, file, n)  # before the labels: it holds n to the size of the file
            with archive.open("labels.npy") as member:
                labels = npy.read_array(member, allow_pickle=False).astype(np.int64)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"{file} is truncated or no npz file: {error}") from error
    if labels.min() < 1 or labels.max() > CLASSES:
        raise DataError(
            f"{file}: labels go from {labels.min()} to {labels.max()}; those of ImageNet64 go from 1 to {CLASSES}"
        )
    return data, labels - 1


def _header(archive: zipfile.ZipFile, name: str, file: Path) -> tuple[tuple[int, ...], bool, np.dtype]:  # type: ignore[type-arg]
    """(shape, Fortran order, dtype) of an array in a zip file.
    Raises DataError for Python objects, which only a pickle could hold.
    """
    with archive.open(name) as member:
        shape, fortran, kind = _read_header(member)
    if kind.hasobject:
        raise DataError(f"{file}: {name} holds pickled Python objects, which are refused")
    return shape, fortran, kind


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:  # type: ignore[type-arg]
    version = npy.read_magic(member)
    return npy.read_array_header_1_0(member) if version == (1, 0) else npy.read_array_header_2_0(member)


def _rows(archive: zipfile.ZipFile, file: Path, n: int) -> NDArray[np.uint8]:
    """The array 'data' mapped from the disk:
    from its place in the zip file if it is stored there as it is, else from an expanded copy.
    """
    info = archive.getinfo("data.npy")
    with archive.open(info) as member:
        _read_header(member)
        begin = member.tell()
    if info.file_size != begin + n * ROW:
        raise DataError(f"{file}: data has {info.file_size - begin} bytes, not the {n * ROW} of its shape ({n}, {ROW})")
    if info.compress_type == zipfile.ZIP_STORED:
        with open(file, "rb") as whole:
            whole.seek(info.header_offset + 26)
            name, extra = struct.unpack("<2H", whole.read(4))
        return np.memmap(file, np.uint8, "r", offset=info.header_offset + 30 + name + extra + begin, shape=(n, ROW))
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if info.file_size > free:
        raise DataError(
            f"{file} is compressed and expands to {info.file_size} bytes, but {tempfile.gettempdir()} has {free} free; "
            "set TMPDIR to a larger disk"
        )
    with tempfile.TemporaryFile() as copy, archive.open(info) as member:
        shutil.copyfileobj(member, copy, 2**20)
        copy.flush()
        return np.memmap(copy, np.uint8, "r", offset=begin, shape=(n, ROW))


def _synsets(path: Path) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Sorted synsets, and for each of the batches' classes (from 0) the place of its synset among them."""
    refuse_irregular(path)
    try:
        matches = [_LINE.fullmatch(line.strip()) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    synset = {int(match[2]): match[1] for match in matches if match}
    if None in matches or sorted(synset) != list(range(1, CLASSES + 1)) or len(set(synset.values())) != CLASSES:
        raise DataError(
            f"{path} is no class map: {CLASSES} lines like 'n02119789 1 kit_fox' are needed, each "
            "number and synset once"
        )
    classes = tuple(sorted(synset.values()))
    place = {name: label for label, name in enumerate(classes)}
    return classes, np.array([place[synset[number]] for number in range(1, CLASSES + 1)], np.int64)
