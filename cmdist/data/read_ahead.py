"""Arrays that forked processes fill ahead of their use, in memory shared with them:
pixels are neither copied nor sent on their way.

torch's DataLoader could do it, but copies each batch into a file of shared memory, and hands that over in a thread of
the reading process, which takes turns with the decoder: a quarter of the time that a JPEG of 64x64 takes.
"""

import atexit
import contextlib
import itertools
import mmap
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cmdist.data.preparing.workers import sendable
from cmdist.errors import DataError

ARRAYS = 3  # arrays of each process: one with the caller, one being filled, one filled before
GRACE = 2.0  # seconds that a process has for ending by itself

Pixels = NDArray[np.uint8]
T = TypeVar("T")

_context = multiprocessing.get_context(
    "fork"
)  # any other leaves a helper process behind and imports the main script again


def filled(
    fill: Callable[[int, Pixels], T], numbers: Iterator[int], shape: Sequence[int], workers: int
) -> Generator[tuple[T, Pixels], None, None]:
    """`fill(number, array)` for each number, by turns in `workers` processes: in the order of the numbers, what it
    returned and the array.

    An array, of `shape` and uint8, may be used until the next one is asked for. Raises what `fill` raises (as
    RuntimeError unless it is a CmdistError or an OSError), DataError if a process dies. Closing the generator ends the
    processes; if this one is killed, they end by themselves.
    """
    crew: list[_Worker] = []

    def end() -> None:
        for worker in crew:
            worker.connection.close()
        deadline = time.monotonic() + GRACE
        for worker in crew:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()

    atexit.register(
        end
    )  # for who leaves without closing; before multiprocessing's own handler, which waits for the processes
    try:
        for _ in range(workers):
            crew.append(_Worker(fill, shape, crew))
        turns: deque[tuple[_Worker, int]] = deque()
        places: Iterator[tuple[int, _Worker]] = itertools.product(
            range(ARRAYS), crew
        )  # free ones: first one of each process, then the next of each
        while True:
            for (place, worker), number in zip(places, numbers, strict=False):
                worker.ask(number, place)
                turns.append((worker, place))
            if not turns:
                return
            worker, place = turns.popleft()
            yield worker.answer(), worker.arrays[place]
            places = iter([(place, worker)])
    finally:
        atexit.unregister(end)
        end()


class _Worker:
    """A process, the pipe to it, and the arrays that are shared with it."""

    def __init__(self, fill: Callable[[int, Pixels], Any], shape: Sequence[int], others: Sequence["_Worker"]) -> None:
        memory = mmap.mmap(
            -1, ARRAYS * int(np.prod(shape, dtype=np.int64))
        )  # shared after a fork; not of /dev/shm, which may be small
        self.arrays: Pixels = np.frombuffer(memory, np.uint8).reshape(ARRAYS, *shape)
        self.connection, theirs = _context.Pipe()
        # what a child holds of these ends would keep its brothers from noticing that this process is gone
        ours = [self.connection, *(other.connection for other in others)]
        self.process = _context.Process(target=_work, args=(fill, self.arrays, theirs, ours), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, number: int, place: int) -> None:
        with self._alive():
            self.connection.send((number, place))

    def answer(self) -> Any:
        with self._alive():
            result, error = self.connection.recv()
        if error is not None:
            raise error
        return result

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as gone:
            self.process.join(GRACE)
            raise DataError(
                f"a reading process died (exit code {self.process.exitcode}); if the node ran out of memory, lower "
                "data.workers"
            ) from gone


def _work(
    fill: Callable[[int, Pixels], Any], arrays: Pixels, connection: Connection, others: Sequence[Connection]
) -> None:
    # A scheduler sends the signals that ask a run to stop to every process, and only the rank decides. It closes the
    # pipe in the end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for other in others:
        other.close()
    torch.set_num_threads(1)  # the threads that torch had before the fork are not here
    with contextlib.suppress(EOFError, OSError):  # it was closed, or who asked is gone
        while True:
            number, place = connection.recv()
            connection.send(_answer(fill, number, arrays[place]))
    os._exit(0)  # a download ahead may still be running in a thread, and nobody waits for it


def _answer(fill: Callable[[int, Pixels], T], number: int, array: Pixels) -> tuple[T | None, Exception | None]:
    try:
        return fill(number, array), None
    except Exception as error:
        return None, sendable(error)
