"""Attempts: one number for each, a live one is not disturbed, an overtaken one commits nothing that counts."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cmdist.checkpoints import attempt, checkpoint, sealed, search
from cmdist.checkpoints.attempt import Attempt, attempt_at
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import Fenced, RunInUse
from cmdist.system import storage
from cmdist.system.distributed import World


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "BEAT", 0.2)
    monkeypatch.setattr(attempt, "SILENCE", 1.0)


def elsewhere(run: str, number: int, **changes: Any) -> None:
    """As if the attempt ran on another machine."""
    path = Path(run) / "attempts" / f"{number:06d}"
    path.write_bytes(sealed.seal(sealed.read(str(path)) | {"host": "far-away"} | changes))


def saver(run: str, turn: Attempt) -> Saver:
    return Saver(run, "id", Layout.make([("w", (5,))]), World(), attempt=turn)


def save(run: str, turn: Attempt, step: int) -> None:
    background = saver(run, turn)
    background.save(step, Snapshot(0, {"master": torch.full((5,), float(turn.number))}, {0.9: torch.zeros(5)}, {}))
    background.wait()


def test_a_live_attempt_is_not_disturbed_and_an_ended_one_is_followed(tmp_path) -> None:
    run = str(tmp_path)
    with attempt_at(run, World()) as first:
        first.begin(0)
        with pytest.raises(RunInUse, match=rf"is in use by attempt 1, process {os.getpid()} on .*, which is alive"):
            Attempt.take(run)
    second = Attempt.take(run)
    assert (first.number, second.number) == (1, 2)
    second.end()
    assert attempt.numbers(run) == [1], "one that never began leaves no trace"


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path) -> None:
    run = str(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=lambda: (Attempt.take(run), os._exit(9)))
    child.start()
    child.join()
    begin = time.monotonic()
    Attempt.take(run).end()
    assert time.monotonic() - begin < attempt.SILENCE / 2


def test_another_process_with_the_same_number_is_not_the_attempt(tmp_path) -> None:
    run = str(tmp_path)
    Attempt.take(run)._over.set()
    path = Path(run) / "attempts" / "000001"
    path.write_bytes(sealed.seal(sealed.read(str(path)) | {"started": psutil.Process().create_time() - 1000}))
    assert Attempt.take(run).number == 2


def test_on_another_machine_it_is_watched(tmp_path, monkeypatch, capsys) -> None:
    run = str(tmp_path)
    alive = Attempt.take(run)
    path = Path(run) / "attempts" / "000001"
    elsewhere(run, 1)
    alive._claim = path.read_bytes()
    with pytest.raises(RunInUse, match="process .* on far-away, which is alive"):
        Attempt.take(run)
    alive._over.set()  # and never says so
    alive._thread.join()
    begin = time.monotonic()
    assert Attempt.take(run).number == 2
    assert attempt.SILENCE <= time.monotonic() - begin < 3 * attempt.SILENCE
    assert "has not ended; looking for 1 s whether it lives" in capsys.readouterr().err


def test_a_requeued_job_does_not_wait_for_itself(tmp_path, monkeypatch) -> None:
    run = str(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first = Attempt.take(run)
    elsewhere(run, 1)
    assert Attempt.take(run).number == 2
    with pytest.raises(Fenced):
        first.check()


def test_of_many_at_the_same_moment_one_wins(tmp_path) -> None:
    run, won, refused = str(tmp_path), [], []
    barrier = threading.Barrier(8)

    def go() -> None:
        barrier.wait()
        try:
            won.append(Attempt.take(run))
        except RunInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 7 and attempt.numbers(run) == [1]


def overtaken(run: str) -> tuple[Attempt, Attempt]:
    """Attempt 1, which has committed steps 10 and 20, and attempt 2, which has taken over without its knowing."""
    first = Attempt.take(run)
    first.begin(0)
    save(run, first, 10)
    save(run, first, 20)
    first._over.set()
    first._thread.join()  # else it may be seen to live while the second looks
    elsewhere(run, 1)
    second = Attempt.take(run)
    second.begin(20)
    return first, second


def test_an_overtaken_attempt_cannot_commit(tmp_path) -> None:
    run = str(tmp_path)
    first, second = overtaken(run)
    late = saver(run, first)
    late.save(30, Snapshot(0, {"master": torch.ones(5)}, {0.9: torch.zeros(5)}, {}))
    with pytest.raises(
        Fenced, match="attempt 2, process .* has taken over .*: attempt 1 ends here and commits nothing more"
    ) as error:
        late.wait()
    assert error.value.exit_code == 4
    assert search.steps(run) == [10, 20]
    save(run, second, 30)
    assert torch.equal(search.open_checkpoint(run, 30).read_state("master", 0, 5), torch.full((5,), 2.0))


def test_a_commit_that_was_on_its_way_when_it_was_overtaken_does_not_count(tmp_path, monkeypatch) -> None:
    """The old attempt looks, is overtaken, and writes COMMIT: no store can stop that, but nobody takes it for one."""
    run = str(tmp_path)
    first, second = overtaken(run)
    monkeypatch.setattr(first, "check", lambda: None)
    save(run, first, 30)
    assert storage.exists(checkpoint.folder(run, 30, 1) + "/COMMIT")
    assert search.steps(run) == [10, 20]
    save(run, second, 30)
    save(run, second, 40)
    assert torch.equal(search.open_checkpoint(run, 30).read_state("master", 0, 5), torch.full((5,), 2.0))
    assert search.steps(run) == [10, 20, 30, 40]


def test_the_beat_notices_a_newer_attempt(tmp_path) -> None:
    run = str(tmp_path)
    first = Attempt.take(run)
    elsewhere(run, 1)
    first._claim = (Path(run) / "attempts" / "000001").read_bytes()
    storage.write(f"{run}/attempts/000002", sealed.seal({"host": "far-away", "pid": 7}))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            first.raise_if_fenced()
        except Fenced as error:
            assert "attempt 2, process 7 on far-away," in str(error)
            return
    raise AssertionError("not noticed")


def test_starts_hold_what_rules_out(tmp_path) -> None:
    run = str(tmp_path)
    later = [(20, [(2, 0), (3, 20)]), (30, [(2, 0), (3, 20), (4, 30)]), (10, [(2, 0), (5, 10)])]
    for step, expected in [(0, [(1, 0)]), (0, [(2, 0)]), *later]:
        with attempt_at(run, World()) as turn:
            turn.begin(step)
        assert attempt.starts(run) == expected
