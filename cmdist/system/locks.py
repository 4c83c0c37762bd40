"""Locks of files between processes: whoever waits for one says so, and not for ever."""

import fcntl
import sys
import time

from cmdist.errors import CmdistError

SAID_AFTER = 10.0  # seconds
PAUSE = 0.05


class StillLocked(CmdistError):
    """Another process holds a lock for longer than anybody waits."""


def take(number: int, what: str, patience: float) -> None:
    """Hold the lock of an open file alone; `what` is done by whoever holds it.

    Says on stderr for what it waits after some seconds. Raises StillLocked after `patience` seconds.
    """
    begin, said = time.monotonic(), False
    while not tried(number):
        waited = time.monotonic() - begin
        if waited > patience:
            raise StillLocked(f"another process has been {what} for {waited:.0f} s; end it, or try again later")
        if waited > SAID_AFTER and not said:
            print(f"waiting for another process, which is {what} (up to {patience:.0f} s)", file=sys.stderr, flush=True)
            said = True
        time.sleep(PAUSE)


def tried(number: int) -> bool:
    """Whether the lock could be taken at once."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
