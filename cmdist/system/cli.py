"""The frame around every command in pipelines/: one sentence and an exit code for a failure, a traceback only with
--debug.
"""

import io
import sys
import traceback
from collections.abc import Callable, Sequence

from cmdist.errors import CmdistError


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
