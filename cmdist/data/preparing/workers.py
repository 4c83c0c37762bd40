"""Tasks shared out to forked processes that leave nothing behind, however their parent ends."""

import mmap
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from cmdist.errors import CmdistError, DataError

Progress = Callable[[int], object]  # called with the number of images done since the last call

IDLE = 1800.0  # seconds without an image, after which the processes are given up
_DONE, _BAD = 0, 1


class Tally:
    """Images done and images bad, counted by all processes together without a lock: each has a row of its own."""

    def __init__(self, rows: int, progress: Progress | None = None) -> None:
        self._counts = np.frombuffer(
            mmap.mmap(-1, 16 * rows + 8), np.int64
        )  # shared after a fork; the last number says stop
        self._row, self._parent, self._progress = 0, os.getppid(), progress

    def be_worker(self, row: int, parent: int) -> None:
        """In a forked process: count in this row, and end once `parent` is gone or says stop."""
        self._row, self._parent, self._progress = row, parent, None

    def add(self, done: int, bad: int = 0) -> None:
        """Count. In a worker whose parent was killed, or wants it to stop, this ends the process."""
        self._counts[2 * self._row + _DONE] += done
        self._counts[2 * self._row + _BAD] += bad
        if self._progress:
            self._progress(done)
        elif self._counts[-1] or os.getppid() != self._parent:
            raise SystemExit(1)

    def stop(self) -> None:
        """Ask all workers to end."""
        self._counts[-1] = 1

    @property
    def done(self) -> int:
        """By all processes."""
        return int(self._counts[:-1][_DONE::2].sum())

    @property
    def bad(self) -> int:
        """By all processes."""
        return int(self._counts[:-1][_BAD::2].sum())


def run(
    tasks: Sequence[int], work: Callable[[int, Tally], None], workers: int, progress: Progress | None = None
) -> None:
    """`work(task, tally)` for each task, in this process (`workers` 0 or 1) or in forked ones, which take the next task
    as they are free.

    The first error of any of them is raised here and ends the others. `tally.add` reports progress. Raises DataError if
    a worker is killed.
    """
    if min(workers, len(tasks)) <= 1:
        tally = Tally(1, progress or (lambda n: None))
        for task in tasks:
            work(task, tally)
        return
    context = multiprocessing.get_context("fork")  # what the source has listed and mapped is shared, not copied
    workers = min(workers, len(tasks))
    tally, taken, failures = Tally(workers), context.Value("q", 0), context.SimpleQueue()
    processes = [
        context.Process(target=_worker, args=(row, os.getpid(), tasks, work, tally, taken, failures), daemon=True)
        for row in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        reported, moved = 0, time.monotonic()
        while True:
            running = [process for process in processes if process.exitcode is None]
            wait([process.sentinel for process in running], timeout=0.2)
            done = tally.done  # once: the workers go on counting
            if progress:
                progress(done - reported)
            if done != reported:
                reported, moved = done, time.monotonic()
            if time.monotonic() - moved > IDLE:
                raise DataError(
                    f"the worker processes have finished no image for {IDLE / 60:g} min: is a disk or a mount stuck? "
                    "The same command goes on where it stopped"
                )
            if not failures.empty():
                raise failures.get()
            if killed := [process.exitcode for process in processes if process.exitcode]:
                raise DataError(
                    f"a worker process was killed (exit code {killed[0]}); the same command goes on where it stopped"
                )
            if not running:
                return
    finally:
        tally.stop()
        deadline = time.monotonic() + 10
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def _worker(
    row: int,
    parent: int,
    tasks: Sequence[int],
    work: Callable[[int, Tally], None],
    tally: Tally,
    taken: Any,
    failures: Any,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    tally.be_worker(row, parent)
    try:
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(tasks):
                return
            work(tasks[number], tally)
    except Exception as error:
        failures.put(sendable(error))


def sendable(error: Exception) -> Exception:
    """An error being handled, for another process: with its traceback, for --debug, and as text, since not every
    exception can be sent.
    """
    if isinstance(error, CmdistError):
        return error
    told: Exception = RuntimeError(f"{type(error).__name__}: {error}")
    if isinstance(error, OSError) and error.strerror:
        told = OSError(error.errno, error.strerror, error.filename)
    told.add_note(traceback.format_exc())
    return told
