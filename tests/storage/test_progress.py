"""Progress without commits is never a start at 0; a run that was killed before its first commit starts over by
itself.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmdist.checkpoints import attempt as attempts
from cmdist.checkpoints import checkpoint, progress, sealed, search
from cmdist.checkpoints.attempt import Attempt
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import LookupFailed, ProgressLost
from cmdist.system import storage
from cmdist.system.distributed import World
from cmdist.train import resume

LAYOUT = Layout.make([("w", (50,))])
SLICES = "slices-00000-of-00001.safetensors"


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    return f"{s3}/run" if request.param == "s3" else str(tmp_path / "run")


class Killed(BaseException):
    """As far as the store can see, the process is gone."""


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No file of this name is written to checkpoints/, nor any after it."""
    plain, dead = storage.write, [False]

    def write(url: str, data: Any) -> None:
        dead[0] = dead[0] or url.rpartition("/")[2] == name
        if dead[0] and "/checkpoints/" in url:
            raise Killed
        plain(url, data)

    monkeypatch.setattr(storage, "write", write)


def train(run: str, begin: int, *steps: int, own: bool = True, keep: int = 0) -> None:
    """An attempt that saves at these steps; on its own machine, as it ends without a word when it is killed."""
    turn = Attempt.take(run)
    turn.begin(begin, own)
    saver = Saver(run, "id", LAYOUT, World(), attempt=turn, keep=Keep(keep))
    try:
        for step in steps:
            assert saver.ready(step, last=False)
            saver.save(step, Snapshot(0, {"master": torch.full((50,), 1.0 * step)}, {0.9: torch.zeros(50)}, {}))
        saver.wait()
    finally:
        turn.end()


def find(run: str, mode: str = "auto") -> checkpoint.Checkpoint | None:
    return resume.find(run, ("id",), mode, World())


def lose(run: str, *names: str) -> None:
    for entry in search.entries(run):
        for name in names:
            storage.remove(storage.join(entry.url, name))


def lose_checkpoints(run: str) -> None:
    storage.remove(storage.join(run, "checkpoints"))


def evaluated_without_attempts(run: str) -> None:
    lose_checkpoints(run)
    storage.remove(storage.join(run, "attempts"))
    storage.write(storage.join(run, "evaluations", "step-0000000010-fd_1step-abc.json"), b"{}")


def only_run_json(run: str) -> None:
    lose_checkpoints(run)
    storage.remove(storage.join(run, "attempts"))
    storage.write(storage.join(run, "run.json"), sealed.seal({"id": "id", "committed": 20}))


def files_without_extension(run: str) -> None:
    """As a filter that takes *.safetensors and *.json only: no COMMIT, no VERIFIED, no claim."""
    lose(run, "COMMIT", "VERIFIED", "UNFINISHED")
    storage.remove(storage.join(run, "attempts"))


LOSSES: dict[str, tuple[Callable[[str], None], str]] = {
    "COMMIT files": (
        lambda run: lose(run, "COMMIT"),
        r"checkpoints/: step-0000000010-0001 with ema-0.9.safetensors, slices-.*, state.json but no COMMIT, "
        r"step-0000000020-0001 .*; attempts/: attempt 1 has committed",
    ),
    "files without an extension": (files_without_extension, r"step-0000000020-0001 with .*state.json but no COMMIT"),
    "all but slices": (
        lambda run: (files_without_extension(run), lose(run, "state.json", "ema-0.9.safetensors")),
        rf"step-0000000010-0001 with {SLICES} but no COMMIT",
    ),
    "all checkpoints": (lose_checkpoints, r"\(attempts/: attempt 1 has committed\)"),
    "attempts too, but not evaluations": (
        evaluated_without_attempts,
        r"\(evaluations/: step-0000000010-fd_1step-abc.json\)",
    ),
    "all but run.json": (only_run_json, r"\(run.json: step 20 was committed\)"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_progress_without_commits_is_refused_with_what_was_found(run: str, what: str) -> None:
    lost, says = LOSSES[what]
    train(run, 0, 10, 20)
    lost(run)
    before = {entry.url: entry.names for entry in search.entries(run)}
    for mode in ("auto", "none", "s3://bucket/another"):
        with pytest.raises(ProgressLost, match=says) as error:
            find(run, mode)
        assert error.value.exit_code == 2 and "not started over: mount, copy or move back" in str(error.value)
    assert {entry.url: entry.names for entry in search.entries(run)} == before


def test_a_checkpoint_that_a_later_start_has_passed_over_is_not_forgotten(run: str) -> None:
    """Code of before this check had started over: when its COMMIT is back it does not count, and nothing else is
    there.
    """
    train(run, 0, 10)
    train(run, 0)
    with pytest.raises(ProgressLost, match="step-0000000010-0001, committed, before which a later attempt has started"):
        find(run)


def test_a_started_attempt_beyond_step_0_is_a_trace(run: str) -> None:
    """Pruned and filtered down to the newest .start, which knows where it began."""
    train(run, 0, 10)
    train(run, 10)
    for name in ("000001.saved", "000001.start"):
        storage.remove(storage.join(run, "attempts", name))
    lose_checkpoints(run)
    assert attempts.known(run).saved == (1,)
    with pytest.raises(ProgressLost, match="attempt 1 has committed; attempts/: attempt 2 started from step 10"):
        find(run)


@pytest.mark.parametrize("at", [SLICES, "ema-0.9.safetensors", "state.json", "COMMIT"])
def test_a_run_killed_before_its_first_commit_starts_over_and_clears_up(
    run: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, at)
        with pytest.raises(Killed):
            train(run, 0, 10)
    assert find(run) is None
    train(run, 0)
    assert find(run) is None, "nor does a second kill make it a trace"
    turn = Attempt.take(run)
    assert progress.clear(run, turn) == []
    turn.end()
    assert search.entries(run) == []


def test_a_lost_commit_is_told_from_a_killed_save_beside_it(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention and clearing up take the second and leave the first, in full."""
    train(run, 0, 10)
    with monkeypatch.context() as patch:
        killed_at(patch, "COMMIT")
        with pytest.raises(Killed):
            train(run, 10, 15)
    lose(run, "COMMIT")
    files = {entry.step: entry.names for entry in search.entries(run)}
    assert files[15] == files[10] | {"UNFINISHED"} and files[10] == {SLICES, "ema-0.9.safetensors", "state.json"}
    storage.write(storage.join(run, "evaluations", "step-0000000015.begun"), b"")
    train(run, 0, 20, 30, keep=1)
    assert {entry.step: entry.names for entry in search.entries(run)}[10] == files[10]
    assert [entry.step for entry in search.entries(run)] == [10, 30]
    turn = Attempt.take(run)
    (said,) = progress.clear(run, turn)
    turn.end()
    assert said.startswith("1 folders of earlier attempts hold complete data that does not count (step-0000000010-0001")


def test_a_start_from_another_run_is_repeated_by_the_same_command_only(run: str) -> None:
    other = f"{run}-other"
    train(other, 0, 40)
    train(run, 40, own=False)  # killed before its first commit
    found = find(run, other)
    assert found is not None and found.step == 40
    with pytest.raises(ProgressLost, match="attempt 1 started from step 40 of another run, which --resume has to name"):
        find(run)


def test_what_older_code_has_left_of_a_killed_save_is_no_trace(run: str) -> None:
    storage.write(f"{run}/attempts/000001.start", sealed.seal({"starts": [[1, 0]]}))
    storage.write(f"{run}/checkpoints/step-0000000010-0001/{SLICES}", b"part")
    assert find(run) is None
    storage.write(f"{run}/checkpoints/step-0000000010-0001/state.json", b"{}")
    with pytest.raises(ProgressLost):  # complete: nobody knows
        find(run)


@pytest.mark.parametrize("link", ["run", "run/checkpoints", "run/attempts"])
def test_a_dangling_link_is_not_an_empty_folder(tmp_path: Path, link: str) -> None:
    run = str(tmp_path / "run")
    train(run, 0, 10)
    (tmp_path / link).rename(tmp_path / "scratch")
    (tmp_path / link).symlink_to(tmp_path / "scratch")
    found = find(run)
    assert found is not None and found.step == 10
    (tmp_path / "scratch").rename(tmp_path / "away")
    with pytest.raises(LookupFailed, match=r"is a link to .*scratch, which is not there \(is that disk mounted\?\)"):
        find(run)


def test_a_start_asks_the_store_no_more_often_as_attempts_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, count = str(tmp_path / "run"), [0]

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            count[0] += threading.current_thread() is threading.main_thread()  # not the sign of life
            return plain(*arguments)

        return call

    for name in ("names", "read", "exists", "write", "create", "remove"):
        monkeypatch.setattr(storage, name, counted(getattr(storage, name)))

    def requests() -> int:
        count[0] = 0
        turn = Attempt.take(run)
        turn.begin(0)
        assert find(run) is None and progress.clear(run, turn) == []
        turn.end()
        return count[0]

    monkeypatch.setattr(attempts, "KEPT", 4)
    costs = [requests() for _ in range(30)]
    # the claim, start, beat and end of one attempt go at each start, once there are more than four
    assert len(set(costs[6:])) == 1 and costs[-1] <= costs[2] + 4
    assert attempts.numbers(run) == [27, 28, 29, 30]
