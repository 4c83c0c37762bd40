"""What lies in a folder of one's own images."""

import errno
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmdist.data.decode import EXTENSIONS
from cmdist.data.preparing.sources.base import changed_at, read_file, stat_of
from cmdist.data.preparing.sources.labels import DATASET_JSON, parts_of
from cmdist.errors import DataError

READ = (*EXTENSIONS, "jpe", "jfif")
OTHERS = ("gif", "bmp", "tif", "tiff", "heic", "avif", "jp2", "jxl")
_NO_CLASSES = "__MACOSX"  # what macOS puts into every zip file


@dataclass(frozen=True)
class Listing:
    """The images of a folder or archive, before any of them is looked at."""

    title: str
    root: Path
    names: list[str]  # relative paths, sorted
    numbers: NDArray[np.int64]  # a size or checksum of each
    modified: str  # as in Source
    read: Callable[[int, str], bytes]  # number and name of an image -> its bytes
    others: int  # pictures of other formats
    folders: frozenset[str]  # with images or without
    json: tuple[str, Callable[[], bytes]] | None  # the name of a dataset.json, and its reader
    notes: tuple[str, ...] = ()


def in_folder(path: str | Path) -> Listing:
    """Of a folder and those below it; hidden ones are skipped, links are followed. Raises DataError."""
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, with labels as sub-folders if there are any")
    members: list[tuple[str, int, int]] = []  # name, size, time
    folders: set[str] = set()
    tables: list[str] = []
    others = 0
    todo: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while todo:
        base, above = todo.pop()
        here = os.path.realpath(root / base)
        if here in above:
            raise DataError(
                f"{root / base} is a link to a folder that it lies in, so its images would have no end: remove the link"
            )
        with os.scandir(root / base) as entries:
            for entry in entries:
                name = f"{base}{entry.name}"
                if _is_folder(entry):
                    if not entry.name.startswith(".") and entry.name != _NO_CLASSES:
                        folders.add(name)
                        todo.append((f"{name}/", (*above, here)))
                elif ends_in(name, READ) and (file := stat_of(entry)) is not None:
                    members.append((name, file.size, file.modified))
                elif entry.name == DATASET_JSON:
                    tables.append(name)
                else:
                    others += ends_in(name, OTHERS)
    members.sort(key=lambda entry: entry[0].split("/"))
    table = first_table(tables)
    return Listing(
        title=root.resolve().name,
        root=root,
        names=[name for name, _, _ in members],
        numbers=np.array([size for _, size, _ in members], np.int64),
        modified=changed_at([time for _, _, time in members]),
        read=lambda i, name: read_file(root / name),
        others=others,
        folders=frozenset(folders),
        json=(table, lambda: read_file(root / table)) if table else None,
    )


def first_table(names: Collection[str]) -> str | None:
    """Of several files called dataset.json that of the outermost folder."""
    return min(names, key=lambda name: (len(parts_of(name)), name), default=None)


def ends_in(name: str, endings: Collection[str]) -> bool:
    """By its extension; what is hidden does not, e.g.
    ._a.png, which macOS puts into every zip file, or .ipynb_checkpoints/a.png.
    """
    if any(part.startswith(".") and part != "." for part in name.replace("\\", "/").split("/")):
        return False
    return os.path.splitext(name)[1].lower().lstrip(".") in endings


def folders_of(names: Collection[str]) -> frozenset[str]:
    """The folders above these members of an archive, and members that are folders; hidden ones are left out."""
    folders = set()
    for name in names:
        parts = parts_of(name)
        stop = len(parts) if name.endswith(("/", "\\")) else len(parts) - 1
        if not any(part.startswith(".") or part == _NO_CLASSES for part in parts[:stop]):
            folders |= {"/".join(parts[:n]) for n in range(1, stop + 1)}
    return frozenset(folders)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
            raise
        return False
