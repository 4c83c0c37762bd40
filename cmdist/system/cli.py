"""The frame around every command in pipelines/:
one sentence and an exit code for a failure, a traceback only with --debug.
"""

import argparse
import contextlib
import io
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from cmdist.errors import CmdistError, ConfigError
from cmdist.system import collector, texts, urls

FAILURE = "CMDIST_FAILURE"  # variable: a file for the sentence of the first process of a job that fails
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
    collector.spare_the_end()
    try:
        main(arguments)
    except Exception as error:
        if debug:
            sys.stderr.write(urls.masked(traceback.format_exc()))
        say_failure(sentence(error))
        sys.exit(error.exit_code if isinstance(error, CmdistError) else 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def say(line: str) -> None:
    """A line on stderr, on a row of its own beside a progress bar; one write, as the lines of ranks must not mix."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        if bars is not None and getattr(bars, "_instances", None):
            bars.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class Parser(argparse.ArgumentParser):
    """argparse's, whose complaints show no secrets of URLs and no control characters."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the complaint, and end with exit code 2."""
        super().error(texts.printable(urls.masked(message)))


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """The options of guidance, for cmdist.guiding."""
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="scale of guidance, away from the model without a class; 1: none"
    )
    parser.add_argument("--guide", metavar="RUN|FILE", help="autoguidance: away from this worse model instead")
    parser.add_argument(
        "--guidance-interval", nargs=2, type=float, metavar=("LOW", "HIGH"), help="noise levels at which it holds"
    )


def unused(options: argparse.Namespace, names: Sequence[str], where: str) -> None:
    """Raise ConfigError for the first of the options `names` that was given: `where` it does nothing."""
    for name in names:
        if (value := getattr(options, name)) is not None and value is not False and value != []:
            raise ConfigError(f"--{name.replace('_', '-')} does nothing {where}")


def say_failure(sentence: str) -> None:
    """The last words of a command, on stderr and where `note_failure` puts them."""
    say(f"error: {sentence}")
    note_failure(sentence)


def note_failure(sentence: str) -> None:
    """Put a sentence into the file that FAILURE names, unless another process of the job was faster."""
    path = os.environ.get(FAILURE)
    if path:
        rank = os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0"))
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        with contextlib.suppress(OSError), open(path, "x") as file:  # the first one's stays
            file.write(f"rank {rank} on {node}: {sentence}\n")


def sentence(error: BaseException) -> str:
    """One line for `error`, without secrets of URLs and control characters; a failure that we did not foresee is named
    by its type and where to see more.
    """
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, CmdistError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, CmdistError):
        text = f"{type(error).__name__}: {' '.join(text.split())[:500]} (run again with --debug for the traceback)"
    return texts.printable(urls.masked(" ".join(text.split())))
