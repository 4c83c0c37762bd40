import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from cmdist.data.preparing import workers
from cmdist.data.preparing.workers import Tally, run
from cmdist.errors import DataError


@pytest.fixture
def nothing_left(children):
    def look():
        deadline = time.monotonic() + 5
        while (left := children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return not left

    return look


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_each_task_is_done_once_and_counted(tmp_path, workers, nothing_left):
    def work(task, tally):
        with open(tmp_path / f"{task}", "x") as file:
            file.write(str(os.getpid()))
        tally.add(10, bad=task % 2)
        if task < 2:
            time.sleep(0.3)  # so that more than one process gets a task
        sums.append(tally.bad)

    sums, done = [], []
    run(range(9), work, workers, done.append)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(9)) and sum(done) == 90
    processes = {path.read_text() for path in tmp_path.iterdir()}
    assert (processes == {str(os.getpid())}) == (workers == 1) and len(processes) <= workers
    assert workers > 1 or sums[-1] == 4
    assert nothing_left()


def test_bad_ones_are_counted_over_all_processes(tmp_path):
    def work(task, tally):
        tally.add(1, 1)
        while tally.bad < 2:  # each sees the other's
            time.sleep(0.01)

    run(range(2), work, 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_one_ends_all(workers, nothing_left):
    def work(task, tally):
        if task == 1:
            raise DataError("picture 7 is not readable")
        while task != 0:
            time.sleep(0.01)
            tally.add(0)

    begin = time.monotonic()
    with pytest.raises(DataError, match=r"^picture 7 is not readable$"):
        run(range(6), work, workers)
    assert nothing_left() and time.monotonic() - begin < 5


def test_an_unforeseen_error_comes_with_its_traceback():
    def work(task, tally):
        raise LookupError("who knows")

    with pytest.raises(RuntimeError, match="^LookupError: who knows") as caught:
        run(range(2), work, 2)
    assert "in work" in caught.value.__notes__[0]


def test_an_error_of_the_disk_keeps_what_failed_where():
    def work(task, tally):
        Path("/none/such").read_bytes()

    with pytest.raises(FileNotFoundError, match="No such file or directory: '/none/such'") as caught:
        run(range(2), work, 2)
    assert "in work" in caught.value.__notes__[0]


def test_progress_reports_each_one_once_while_workers_go_on_counting(monkeypatch):
    done, reported = Tally.done.fget, []

    def slowly(tally):
        found = done(tally)
        time.sleep(0.02)
        return found

    def work(task, tally):
        for _ in range(200):
            tally.add(1)
            time.sleep(0.002)

    monkeypatch.setattr(Tally, "done", property(slowly))
    run(range(4), work, 2, progress=reported.append)
    assert sum(reported) == 800 and min(reported) >= 0


def test_a_killed_worker_is_one_sentence(nothing_left):
    def work(task, tally):
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while task == 0:
            time.sleep(0.01)
            tally.add(0)

    with pytest.raises(
        DataError, match=r"^a worker process was killed \(exit code -9\); the same command goes on where it stopped$"
    ):
        run(range(2), work, 2)
    assert nothing_left()


def test_workers_end_when_their_parent_is_killed(tmp_path):
    def work(task, tally):
        (tmp_path / str(os.getpid())).touch()
        while True:
            time.sleep(0.01)
            tally.add(0)

    parent = os.fork()
    if parent == 0:
        run(range(2), work, 2)
        os._exit(0)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_workers_that_finish_no_image_for_long_are_given_up(monkeypatch, nothing_left):
    """As on a mount that hangs: nothing else would end the wait."""
    monkeypatch.setattr(workers, "IDLE", 0.5)

    def work(task, tally):
        tally.add(1)
        time.sleep(60)

    begin = time.monotonic()
    with pytest.raises(DataError, match=r"have finished no image for .* min: is a disk or a mount stuck\? The same"):
        run(range(2), work, 2)
    assert nothing_left() and time.monotonic() - begin < 20
