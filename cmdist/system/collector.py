"""Python's collector of cycles, where it only costs time: it looks at every object of the packages that are there."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """While large packages are imported, which takes a fifth longer with it; what they made is not looked at later."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def spare_the_end() -> None:
    """Let this process end without a last look, which takes up to a second. Threads, what atexit calls, temporary
    folders and the standard streams do not need it; a file that nobody closed would not be flushed.
    """
    atexit.register(gc.freeze)
