"""LSUN's LMDB folders (Yu et al., 2015): one database for each category, values are WebP or JPEG files.
The only door to lmdb.
"""

import os
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from cmdist.data.preparing.sources.base import Names, Source, changed_at
from cmdist.data.preparing.sources.pictures import square, transform_of
from cmdist.errors import DataError


def lsun(path: str | Path, size: int = 256, enlarge: bool = False) -> Source:
    """The images of one category, unlabelled, cropped to `size` as in ADM;
    they are numbered in the order of their keys.

    At size 256 this crop and ADM's own LSUN script (one box resize) agree for images with a short side of 256, as
    LSUN's are.

    Raises DataError if there is no LMDB, or a truncated, damaged or empty one.
    """
    root = Path(path)
    names = _keys(root)

    def encoded(i: int) -> bytes:
        key = names[i]
        try:
            with _environment(root).begin() as transaction:
                data = transaction.get(key)
        except lmdb.Error as error:
            raise DataError(f"{root} is damaged: {error}") from error
        if data is None:
            raise DataError(f"{root} has changed: the key {key.decode(errors='replace')} is gone")
        return bytes(data)

    def image(i: int) -> NDArray[np.uint8]:
        return square(encoded(i), f"{root}/{names[i].decode(errors='replace')}", size, True, enlarge).pixels

    return Source(
        name=root.resolve().name.removesuffix(".lmdb"),
        image_size=size,
        channels=3,
        transform=transform_of(size, enlarge),
        count=len(names),
        image=image,
        fingerprint=names.fingerprint(np.array([(root / "data.mdb").stat().st_size], np.int64)),
        modified=changed_at(root / "data.mdb"),
        encoded=encoded,
    )


# By process and path: an environment must not be used after a fork, nor be opened twice by one process.
_environments: dict[tuple[int, str], lmdb.Environment] = {}


def _environment(root: Path, afresh: bool = False) -> lmdb.Environment:
    mine = (os.getpid(), str(root.resolve()))
    for key in [key for key in _environments if key[0] != mine[0] or (afresh and key == mine)]:
        _environments.pop(key).close()
    if mine not in _environments:
        _environments[mine] = _open(root)
    return _environments[mine]


def _open(root: Path) -> lmdb.Environment:
    data = root / "data.mdb"
    if not data.is_file():
        raise DataError(
            f"{root} is no LMDB folder: it has no data.mdb; give LSUN's unzipped folder, e.g. bedroom_train_lmdb"
        )
    size = data.stat().st_size
    if size == 0:  # lmdb would take it for a new database
        raise DataError(f"{root} is truncated or no LMDB: data.mdb has 0 bytes")
    try:
        environment = lmdb.open(str(root), readonly=True, lock=False, readahead=False, max_readers=1)
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise DataError(f"{root} is truncated or no LMDB: {error}") from error
    if size < needed:  # else reading what is missing would kill the process
        environment.close()
        raise DataError(f"{root} is truncated: data.mdb has {size} bytes, its pages need {needed}")
    return environment


def _keys(root: Path) -> Names:
    try:
        with _environment(root, afresh=True).begin() as transaction:
            names = Names(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise DataError(f"{root} is damaged: {error}") from error
    if not len(names):
        raise DataError(f"{root} holds no images: the database is empty")
    return names
