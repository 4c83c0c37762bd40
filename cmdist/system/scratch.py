"""Folders for large temporary files, on the disk that TMPDIR names; what a killed process has left is removed by the
next one on its node.
"""

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "cmdist-scratch-", "lock"
YOUNG = 60.0  # seconds for which a folder is left alone: it may be just being made


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, which goes at the end of the block; a process that lives holds the lock in its own."""
    sweep()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, (Path(name) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # new, so nobody has it
        yield Path(name)


def sweep() -> int:
    """Remove what dead processes of this user have left; how many folders."""
    count = 0
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or another process is removing it
            if time.time() - left.stat().st_mtime < YOUNG:
                continue
            with (left / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where the process lives
                shutil.rmtree(left)
                count += 1
    return count
