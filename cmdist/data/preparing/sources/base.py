"""What a source of images is, and the parts that several sources share: files and lists of names."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from cmdist.data.decode import MAX_BYTES, BadImageError
from cmdist.errors import DataError
from cmdist.system import files

MOST_CLASSES = 1_000_000  # a larger class number is taken for a mistake: the index names every class
SAMPLED = 32  # images whose content is compared with what was prepared
Pixels = NDArray[np.uint8]  # (H, W, C)


class Picture(NamedTuple):
    """An image, and the names of what was done to it beside cropping."""

    pixels: Pixels
    treated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Images that can be read one by one in any order,
    so that shuffling needs no memory and shards can be written apart.

    `image` raises BadImageError for an image that cannot be had, and is called in several processes after a fork.
    """

    name: str
    image_size: int
    channels: int
    transform: str  # how pixels were made; stored in the index, because variants shift FID
    count: int
    image: Callable[[int], Pixels]  # i -> (H, W, C)
    labels: NDArray[np.int64] | None = None  # (count,), None: unlabelled
    classes: tuple[str, ...] = ()  # names, by label
    passed_over: int = 0  # files of image formats that are not read, by their names
    fingerprint: str = ""  # of what the images are read from: names and sizes, not every byte
    modified: str = ""  # of the times at which the files were changed last
    notes: tuple[str, ...] = ()  # sentences for who prepares it
    picture: Callable[[int], Picture] | None = None  # as `image`, with what was done to it
    encoded: Callable[[int], bytes] | None = None  # as it stands in the source

    def read(self, i: int) -> Picture:
        """Image i and what was done to it. Raises as `image`."""
        return self.picture(i) if self.picture else Picture(self.image(i))

    def sample(self) -> str:
        """A hash of the content of at most SAMPLED images, evenly spread:
        proof of a change that keeps names and sizes.
        """
        digest = xxhash.xxh3_128()
        for i in np.linspace(0, self.count - 1, min(SAMPLED, self.count)).astype(int).tolist():
            try:
                digest.update(self.encoded(i) if self.encoded else self.image(i).tobytes())
            except BadImageError:
                digest.update(b"bad")
        return digest.hexdigest()


class Names:
    """Many names in little memory: one run of bytes and where each ends (3 million paths of 40 bytes: 150 MB, as str
    300 MB or more).
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        parts = list(names)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> bytes:
        return self._bytes[int(self._ends[i - 1]) if i else 0 : int(self._ends[i])]

    def fingerprint(self, *numbers: NDArray[np.int64]) -> str:
        """A hash of the names and of numbers beside them."""
        digest = xxhash.xxh3_128(self._bytes)
        for array in (self._ends, *numbers):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def refuse_unsafe(name: str, where: object) -> None:
    """Raise DataError for a member whose name leads out of its archive.
    Nothing is unpacked, but such an archive is not to be trusted.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (parts and parts[0].endswith(":")):
        raise DataError(f"{where} holds a member '{name}': names that are absolute or hold '..' are refused")


def refuse_irregular(path: Path) -> None:
    """Raise DataError for a pipe or a device, from which reading might never end."""
    try:
        files.refuse_irregular(path)
    except ValueError as error:
        raise DataError(f"{path} {error}") from error


class Stat(NamedTuple):
    """Of a file in a folder."""

    size: int
    modified: int  # ns


def stat_of(entry: "os.DirEntry[str]") -> Stat | None:
    """Of a file in a folder, or None for anything else;
    zeros for a link that leads nowhere, which `read_file` will name.

    Raises OSError for what cannot be looked at: a disk that fails for a moment must not change the listing.
    """
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return Stat(0, 0)
    return Stat(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def changed_at(times: Sequence[int] | Path) -> str:
    """What stands in `Source.modified` for files changed at these times (ns), or for one file."""
    numbers = [times.stat().st_mtime_ns] if isinstance(times, Path) else times
    return xxhash.xxh3_128_hexdigest(np.asarray(numbers, np.int64).tobytes())


def read_file(path: Path) -> bytes:
    """The bytes of one image. Raises BadImageError if it is not there, not to be read, or too long;
    OSError where the disk fails.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for who writes
        with open(number, "rb") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError(f"{path} is no file")
            check_length(status.st_size, path)
            return file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
            raise
        raise BadImageError(f"{path} cannot be read: {error.strerror}") from error


def check_length(length: int, where: object) -> None:
    """Raise BadImageError for an image of more than MAX_BYTES bytes, before it is read."""
    if length > MAX_BYTES:
        raise BadImageError(f"{where} has {length} bytes, {MAX_BYTES} are allowed")
