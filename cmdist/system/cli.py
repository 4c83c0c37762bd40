"""The frame around every command in pipelines/: one sentence and an exit code for a failure, a traceback only with
--debug.
"""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from cmdist.errors import CmdistError, ConfigError

_LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@contextlib.contextmanager
def before_start() -> Iterator[None]:
    """What fails in here would fail again however often the command is started: exit code 2, unless it may pass."""
    try:
        yield
    except CmdistError as error:
        if error.exit_code == 1 and not passes(error):
            error.exit_code = 2
        raise
    except OSError as error:
        if passes(error):
            raise
        raise ConfigError(sentence(error)) from error


def passes(error: BaseException) -> bool:
    """Whether a later start may not meet an error: a store that is down, a disk that is full."""
    return error.passes if isinstance(error, CmdistError) else not isinstance(error, _LASTING)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main(arguments)`; end the process with 0, a CmdistError's own code, 130 on Ctrl-C, else 1."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = "--debug" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        main(arguments)
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"error: {sentence(error)}\n")  # one write: the lines of several ranks must not mix
        sys.stderr.flush()
        sys.exit(error.exit_code if isinstance(error, CmdistError) else 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def sentence(error: BaseException) -> str:
    """One line for `error`; a failure that we did not foresee is named by its type and where to see more."""
    if isinstance(error, CmdistError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return " ".join(f"{error.filename}: {error.strerror}".split())
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (run again with --debug for the traceback)"
