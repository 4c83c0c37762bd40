"""Local files that are read once: regular ones, or a pipe that somebody writes to, never one that nobody does."""

import os
import select
import stat
import time
from pathlib import Path

PATIENCE = 10.0  # seconds for who writes to a pipe
LARGEST = 64 * 2**20  # bytes of a text


def text(path: Path) -> str:
    """The text of a file, or of a pipe as the shell's <(...) makes it.

    Raises OSError, and ValueError with the rest of a sentence for a pipe to which nobody writes, a file that is too
    long, and one that is no UTF-8.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(number, "rb", buffering=0) as file:
        regular = stat.S_ISREG(os.fstat(number).st_mode)
        content = file.read(LARGEST + 1) if regular else _piped(number)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes, which is no text to be read here")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8 text") from error


def _piped(number: int) -> bytes:
    deadline, content = time.monotonic() + PATIENCE, b""
    poll = select.poll()
    poll.register(number, select.POLLIN)
    while len(content) <= LARGEST:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            raise ValueError(f"a pipe to which nobody has written for {PATIENCE:.0f} s")
        try:
            part = os.read(number, 2**20)
        except BlockingIOError:
            continue
        if not part:
            if content:
                return content
            time.sleep(0.05)  # a named pipe that nobody has opened for writing yet reads as empty
            continue
        content += part
    return content


def refuse_irregular(path: Path) -> None:
    """Raise ValueError, with the rest of a sentence, for a pipe, a device or a socket: reading it might never end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("is no file but a pipe, a device or a socket")
