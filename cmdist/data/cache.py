"""Shards of a remote store on this node's disk:
fetched whole, verified, by one process at a time, and within a limit of space.

Everything is agreed on through files, since the readers are processes of several ranks and runs: a lock for each shard
that is being fetched, a lock for the bookkeeping of space, and a shared lock on every shard that is open for reading,
which keeps it from being removed.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cmdist.errors import CmdistError, DataError
from cmdist.system import locks, storage

ATTEMPTS = 4
PAUSE = 1.0  # seconds after the first failure; doubles
LONGEST = 3600.0  # seconds for another process that fetches
PATIENCE = (
    60.0  # seconds for room that other readers hold at this moment, e.g. while they pass from one block to the next
)


class NoRoomError(DataError):
    """Nothing may be removed from the cache at this moment."""


@dataclass(frozen=True)
class Remote:
    """A shard as the index knows it."""

    url: str
    size: int
    checksum: str

    @property
    def name(self) -> str:
        """Of the copy: from the whole URL and the checksum, since all data sets call their shards alike."""
        return hashlib.sha256(f"{self.url}\n{self.checksum}".encode()).hexdigest()[:32]


def default_folder() -> Path:
    """Where fetched shards go unless told otherwise:
    a folder of this user below the system's folder for temporary files.
    """
    return Path(tempfile.gettempdir()) / f"cmdist-shards-{os.getuid()}"


@dataclass(frozen=True)
class Cache:
    """Copies of shards in a folder of this node, at most `limit` bytes of them (None: no limit);
    the least recently opened go first.
    """

    folder: Path
    limit: int | None = None

    def open(self, shard: Remote) -> int:
        """A file descriptor of the local copy, fetched if it is not there; while it is open, nobody removes the copy.

        Raises DataError if the shard is missing, cannot be fetched, is not what the index says even when fetched again,
        or if there is no room for it beside the shards that are being read.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._get(shard, wait=True)
            except NoRoomError:
                if self.limit is None or shard.size > self.limit or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            try:
                number = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:  # removed since then by another process: fetch it again
                continue
            fcntl.flock(number, fcntl.LOCK_SH)
            if os.fstat(number).st_nlink:
                with contextlib.suppress(OSError):
                    os.utime(number)  # the time of its last use
                return number
            os.close(number)

    def fetch(self, shard: Remote, keep: Collection[str] = ()) -> bool:
        """Fetch a copy ahead of its use; False if another process is at it. Failures are left to `open`.

        Raises NoRoomError if there is no room for it without removing one of the copies `keep` (names), which are
        needed sooner.
        """
        try:
            if not self._get(shard, wait=False, keep=keep):
                return False
        except NoRoomError:
            raise
        except CmdistError:
            return True
        with contextlib.suppress(OSError):
            os.utime(self._path(shard))  # about to be used: other processes' fetching ahead is not to remove it
        return True

    def _path(self, shard: Remote) -> Path:
        return self.folder / f"{shard.name}.tar"

    def _get(self, shard: Remote, wait: bool, keep: Collection[str] = ()) -> bool:
        """Whether the copy is there now: False without `wait` if another process is at it."""
        _own(self.folder)
        target = self._path(shard)
        if _complete(target, shard.size):
            return True
        with self._locked(f"{shard.name}.lock", wait) as mine:
            if not mine or _complete(target, shard.size):
                return mine
            self._clear(shard.name)
            with self._room(shard, keep):
                self._download(shard, target)
        return True

    def _download(self, shard: Remote, target: Path) -> None:
        part = self.folder / f".{shard.name}.part"  # written under another name, which replaces a link
        for attempt in range(ATTEMPTS):
            try:
                storage.download(shard.url, part)
                if part.stat().st_size == shard.size and checksum_of(part) == shard.checksum:
                    os.replace(part, target)
                    return
                problem = "what arrives is not what the index says (size or checksum)"
            except FileNotFoundError as error:
                raise DataError(f"shard {shard.url} is missing") from error
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE * 2**attempt)
        part.unlink(missing_ok=True)
        raise DataError(f"shard {shard.url} could not be fetched in {ATTEMPTS} attempts: {problem}")

    @contextlib.contextmanager
    def _room(self, shard: Remote, keep: Collection[str]) -> Iterator[None]:
        """Inside, the shard's bytes are reserved; what was not used for longest is removed for them."""
        if self.limit is None:
            yield
            return
        reserved = self.folder / f".{shard.name}.reserved"
        with self._locked("space.lock", wait=True):
            self._remove_for(shard, keep)
            with open(_opened(reserved), "wb") as file:
                file.truncate(shard.size)  # a file without blocks: only its size counts
        try:
            yield
        finally:
            reserved.unlink(missing_ok=True)

    def _remove_for(self, shard: Remote, keep: Collection[str]) -> None:
        assert self.limit is not None
        copies = sorted(
            (status.st_mtime, path, status.st_size) for path in self.folder.glob("*.tar") if (status := _stat(path))
        )
        used = sum(size for _, _, size in copies) + sum(
            status.st_size for p in self.folder.glob(".*.reserved") if (status := self._live(p))
        )
        for _, path, size in copies:
            if used + shard.size <= self.limit:
                return
            if path.stem not in keep and _remove_unread(path):
                used -= size
        if used + shard.size > self.limit:
            raise NoRoomError(
                f"data.cache_gib is too small: {self.folder} may hold {self.limit:,} bytes, {used:,} are in use at "
                "this moment, "
                f"and shard {shard.url} has {shard.size:,}; it must hold those of two "
                "blocks (data.block_shards) and one more"
            )

    def _clear(self, name: str) -> None:
        """Remove what a process that was killed while it fetched left:
        its reservation and its download (named after the part).
        """
        for stale in self.folder.glob(f".*{name}.*"):
            stale.unlink(missing_ok=True)

    def _live(self, reserved: Path) -> os.stat_result | None:
        """Of a reservation whose fetch is under way; one of a process that was killed is removed."""
        name = reserved.name.removeprefix(".").removesuffix(".reserved")
        with self._locked(f"{name}.lock", wait=False) as abandoned:
            if abandoned:
                self._clear(name)
        return _stat(reserved)

    @contextlib.contextmanager
    def _locked(self, name: str, wait: bool) -> Iterator[bool]:
        """Inside, this process holds a lock (True), or without `wait` perhaps another one does (False). The kernel
        frees a dead one's.
        """
        with open(_opened(self.folder / name), "wb") as lock:
            if wait:
                locks.take(lock.fileno(), f"fetching shards into {self.folder}", LONGEST)
                yield True
            else:
                yield locks.tried(lock.fileno())


def _own(folder: Path) -> None:
    """Make a folder that nobody else may write to, or refuse it: what lies there is read as if it were ours.

    Raises DataError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) and status.st_uid == os.geteuid():
        status = folder.stat()
    problem = (
        "is no folder"
        if not stat.S_ISDIR(status.st_mode)
        else f"belongs to user {status.st_uid}"
        if status.st_uid != os.geteuid()
        else "may be written to by others (chmod go-w)"
        if status.st_mode & 0o022
        else ""
    )
    if problem:
        raise DataError(f"the cache of shards {folder} {problem}; give a folder of your own (data.cache)")


def _opened(path: Path) -> int:
    """A file descriptor to write to; a link is not followed."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _remove_unread(path: Path) -> bool:
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(number)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def checksum_of(path: Path) -> str:
    """'xxh3:...' of a whole file."""
    if path.stat().st_size == 0:
        return "xxh3:" + xxhash.xxh3_128_hexdigest(b"")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return "xxh3:" + xxhash.xxh3_128_hexdigest(data)


def _complete(path: Path, size: int) -> bool:
    status = _stat(path)
    return status is not None and status.st_size == size
