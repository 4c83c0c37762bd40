"""Shards of a remote store on this node's disk: fetched whole, verified, and by one process at a time."""

import fcntl
import hashlib
import mmap
import os
import tempfile
import time
from pathlib import Path

import xxhash

from cmdist import storage
from cmdist.errors import CmdistError, DataError

ATTEMPTS = 4
PAUSE = 1.0  # seconds after the first failure; doubles


def default_folder() -> Path:
    """Where fetched shards go unless told otherwise: a folder of this user below the system's folder for temporary files."""
    return Path(tempfile.gettempdir()) / f"cmdist-shards-{os.getuid()}"


def fetch(url: str, size: int, checksum: str, folder: Path) -> Path:
    """The local copy of a remote shard; if another process of this node is fetching it, wait for that one.

    The name of the copy comes from the whole URL and the checksum, since all data sets call their shards alike.
    Raises DataError if it is missing, cannot be fetched, or is not what `size` and `checksum` say even when fetched again.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = hashlib.sha256(f"{url}\n{checksum}".encode()).hexdigest()[:32]
    target = folder / f"{name}.tar"
    if _complete(target, size):
        return target
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel if its holder dies
        if _complete(target, size):
            return target
        for stale in folder.glob(f".{name}.*"):  # of a process that was killed
            stale.unlink(missing_ok=True)
        part = folder / f".{name}.part"
        for attempt in range(ATTEMPTS):
            try:
                storage.download(url, part)
                if part.stat().st_size == size and checksum_of(part) == checksum:
                    os.replace(part, target)
                    return target
                problem = "what arrives is not what the index says (size or checksum)"
            except FileNotFoundError as error:
                raise DataError(f"shard {url} is missing") from error
            except CmdistError:
                raise
            except Exception as error:  # every store has its own exceptions for 'try again'
                problem = f"{type(error).__name__}: {error}"
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE * 2**attempt)
        part.unlink(missing_ok=True)
        raise DataError(f"shard {url} could not be fetched in {ATTEMPTS} attempts: {problem}")


def checksum_of(path: Path) -> str:
    """'xxh3:...' of a whole file."""
    if path.stat().st_size == 0:
        return "xxh3:" + xxhash.xxh3_128_hexdigest(b"")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return "xxh3:" + xxhash.xxh3_128_hexdigest(data)


def _complete(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size
