"""Python's collector of cycles, where it only costs time: it looks at every object of the packages that are there."""

import atexit
import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """While large packages are imported, which takes a fifth longer with it. What is there then is never looked at
    again, so this must not stand where code comes by repeatedly.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def imported(*modules: str) -> None:
    """Import those of the modules that are not there yet, at rest."""
    if missing := [name for name in modules if name not in sys.modules]:
        with resting():
            for name in missing:
                importlib.import_module(name)


def spare_the_end() -> None:
    """Let this process end without a last look, which takes up to a second. Threads, what atexit calls, temporary
    folders and the standard streams do not need it; a file that nobody closed may not be flushed.
    """
    atexit.register(gc.freeze)
