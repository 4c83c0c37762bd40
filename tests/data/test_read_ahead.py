"""Arrays filled ahead by processes; what the reader makes of them is in test_reader.py."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from cmdist.data.read_ahead import ARRAYS, filled
from cmdist.errors import DataError

SHAPE = (2, 3)


def fill(number, array):
    array[:] = number
    return number, os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 20])
def test_the_numbers_come_in_order_by_turns_whatever_their_count(workers, count, children):
    found = [
        (number, pid, array.copy())
        for (number, pid), array in filled(fill, iter(range(10, 10 + count)), SHAPE, workers)
    ]
    assert [number for number, _, _ in found] == list(range(10, 10 + count))
    assert all(np.array_equal(array, np.full(SHAPE, number)) for number, _, array in found)
    pids = [pid for _, pid, _ in found]
    assert len(set(pids)) == min(workers, count) and os.getpid() not in pids
    assert all(pid == pids[place % workers] for place, pid in enumerate(pids))
    assert not children()


def test_an_array_stays_until_the_next_is_asked_for_and_no_more_than_promised_are_filled():
    taken = []

    def numbers():
        for number in itertools.count():
            taken.append(number)
            yield number

    with contextlib.closing(filled(fill, numbers(), SHAPE, 2)) as arrays:
        for expected in range(30):
            _, array = next(arrays)
            time.sleep(0.005)  # for the processes to be as far ahead as they get
            assert (array == expected).all()
            assert (
                len(taken) == expected + 2 * ARRAYS
            )  # with this one: all places are taken, and each process has two to go on with


def test_an_error_leaves_nothing_and_may_be_one_that_cannot_be_sent(children):
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    def sometimes(number, array):
        if number == 5:
            raise Odd("this", "that")

    arrays = filled(sometimes, itertools.count(), SHAPE, 2)
    for _ in range(5):
        next(arrays)
    with pytest.raises(RuntimeError, match="Odd: this and that"):
        next(arrays)
    assert not children()


def test_a_process_that_dies_is_noticed_at_once_and_named(children):
    arrays = filled(fill, itertools.count(), SHAPE, 2)
    _, pid = next(arrays)[0]
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"^a reading process died \(exit code -9\); if the node ran out of memory"):
        for _ in range(2 * ARRAYS + 1):  # what it had filled before may still come
            next(arrays)
    assert time.monotonic() - start < 2
    assert not children()


def test_a_process_that_does_not_come_to_an_end_is_ended(children):
    def slow(number, array):
        if number:
            time.sleep(60)

    arrays = filled(slow, itertools.count(), SHAPE, 1)
    next(arrays)
    start = time.monotonic()
    arrays.close()
    assert time.monotonic() - start < 4 and not children()


RANK = """
import itertools, sys, time
from cmdist.data.read_ahead import filled
def fill(number, array):
    return __import__("os").getpid()
arrays = filled(fill, itertools.count(), (2,), 3)
print(*[next(arrays)[0] for _ in range(3)], flush=True)
exec(sys.argv[1])
"""


@pytest.mark.parametrize("end", ["time.sleep(60)", "sys.exit()", "raise KeyboardInterrupt"])
def test_processes_end_with_who_asked_however_it_ends(end):
    with subprocess.Popen(
        [sys.executable, "-c", RANK, end], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as rank:
        assert rank.stdout is not None
        pids = [int(pid) for pid in rank.stdout.readline().split()]
        assert len(set(pids)) == 3
        if "sleep" in end:
            rank.kill()
        rank.wait(timeout=10)
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not left
