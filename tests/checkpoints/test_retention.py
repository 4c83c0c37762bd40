"""Which checkpoints stay, and that thinning may be cut short anywhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cmdist.checkpoints import checkpoint, retention, search
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep, choose, thin, thinning
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.checkpoints.search import Entry
from cmdist.system import storage
from cmdist.system.distributed import World

LAYOUT = Layout.make([("w", (17,))])
WHOLE = frozenset({"COMMIT", "state.json", "ema-0.9.safetensors", "slices-00000-of-00001.safetensors"})


def entry(step: int, attempt: int = 1, names: frozenset[str] = WHOLE, void: bool = False) -> Entry:
    return Entry(step, attempt, f"step-{step}-{attempt}", names, void)


def steps(entries: Any) -> list[int]:
    return [e.step for e in entries]


@pytest.mark.parametrize(
    ("keep", "evaluated", "removed", "stripped"),
    [
        (Keep(0), [], [], []),
        (Keep(1), [], [10, 20, 30, 40], []),
        (Keep(3), [], [10, 20], []),
        (Keep(9), [], [], []),
        (Keep(2, every=20), [], [10, 30], []),
        (Keep(2, every=20), [10, 20, 50, 70], [30], [10]),
        (Keep(1), [10, 40], [20, 30], [10, 40]),
    ],
)
def test_the_rule(keep: Keep, evaluated: list[int], removed: list[int], stripped: list[int]) -> None:
    found = [entry(step) for step in (10, 20, 30, 40, 50)]
    what = choose(found, found[-1], keep, evaluated)
    assert steps(what.remove) == removed and steps(what.strip) == stripped


def test_remains_of_dead_attempts_go_and_what_was_set_aside_or_is_complete_stays() -> None:
    partial, damaged, stripped = (
        frozenset({"state.json"}),
        WHOLE | {"DAMAGED"},
        WHOLE - {"slices-00000-of-00001.safetensors"},
    )
    found = [
        entry(10, 1),
        entry(10, 2),
        entry(20, 1, partial),
        entry(20, 2, damaged),
        entry(30, 1, void=True),
        entry(30, 2, stripped),
    ]
    found += [
        entry(40, 2),
        entry(40, 3),
        entry(50, 3),
        entry(60, 1, partial),
        entry(60, 3, partial),
        entry(45, 4, partial),
    ]
    what = choose(found, entry(50, 3), Keep(3), [30])
    # attempt 4's folder may be in the making; nothing above the newest is touched; step 30 of attempt 1 is complete and
    # another branch: a person may still want it
    assert {e.url for e in what.remove} == {"step-10-1", "step-20-1", "step-40-2"} and not what.strip


def test_complete_data_without_commit_stay_unless_they_are_known_to_be_a_rest() -> None:
    """The tried case, and its siblings: averages only, verified; a killed save and a killed removal are no such."""
    lost = WHOLE - {"COMMIT"}
    averages = lost - {"slices-00000-of-00001.safetensors"}
    rank_missing = lost - {"slices-00000-of-00001.safetensors"} | {"slices-00001-of-00002.safetensors"}
    stays = [entry(10, names=lost), entry(11, names=averages), entry(12, names=lost | {"VERIFIED", "UNFINISHED"})]
    goes = [entry(20, names=lost | {"UNFINISHED"}), entry(21, names=lost | {"VERIFIED", "REMOVING"})]
    goes += [entry(22, names=rank_missing), entry(23, names=lost - {"state.json"})]
    newest = entry(50, 2)
    assert steps(choose([*stays, *goes, newest], newest, Keep(1), []).remove) == [20, 21, 22, 23]
    assert steps(retention.remains([*stays, *goes, newest], 3)[0]) == [20, 21]
    assert steps(retention.remains([*stays, *goes, newest], 3)[1]) == [10, 11, 12]


def save(run: str, *steps: int, keep: Keep | None = None) -> None:
    saver = Saver(run, "id", LAYOUT, World(), keep=keep)
    for step in steps:
        assert saver.ready(step, last=False)
        vector = torch.arange(17.0) + step
        saver.save(step, Snapshot(0, {"master": vector}, {0.9: vector}, {}))
    saver.wait()


def test_averages_of_evaluated_steps_stay_readable(tmp_path) -> None:
    run = str(tmp_path)
    storage.write(f"{run}/evaluations/step-0000000002-fd_1step-abc.json", b"{}")
    storage.write(f"{run}/evaluations/step-0000000001.begun", b"")
    save(run, 1, 2, 3, 4, 5, keep=Keep(2))
    assert search.steps(run) == [1, 2, 4, 5]
    for step in (1, 2):
        found = search.open_checkpoint(run, step)
        assert not found.whole and torch.equal(found.read_ema(0.9, 0, 17), torch.arange(17.0) + step)
        found.verify()
    assert search.open_checkpoint(run, 4).whole


@pytest.mark.parametrize("cut", range(6))
def test_a_thinning_that_is_cut_short_leaves_no_holes(tmp_path, monkeypatch, cut: int) -> None:
    run = str(tmp_path)
    save(run, 1, 2, 3, 4)
    storage.write(f"{run}/evaluations/step-0000000001.begun", b"")
    calls = [0]

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] > cut:
                raise KeyboardInterrupt
            return plain(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("remove", "write"):
            patch.setattr(retention.storage, name, counted(getattr(storage, name)))
        with pytest.raises(KeyboardInterrupt):
            thin(thinning(run, 4, 0, Keep(1)))
    for step in search.steps(run):
        search.open_checkpoint(run, step).verify()
    thin(thinning(run, 4, 0, Keep(1)))
    assert search.steps(run) == [1, 4]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_nothing_is_removed_before_the_newer_one_is_read_back(tmp_path, monkeypatch, capsys) -> None:
    """Bytes that suffer on their way to the store are written again; if that does not help, the old checkpoints
    stay.
    """
    run, plain = str(tmp_path), storage.write
    bad: list[str] = []

    def spoiling(url: str, data: Any) -> None:
        if "step-0000000003" in url and "slices" in url and bad:
            bad.pop()
            whole = bytearray(b"".join(data))
            whole[-1] ^= 1
            data = bytes(whole)
        plain(url, data)

    save(run, 1, 2)
    monkeypatch.setattr(storage, "write", spoiling)
    bad[:] = ["once"]
    save(run, 3, keep=Keep(1))
    assert search.steps(run) == [3]
    search.open_checkpoint(run, 3).verify()
    storage.remove(checkpoint.folder(run, 3))
    save(run, 1, 2)
    bad[:] = ["again and again"] * 9
    save(run, 3, keep=Keep(1))
    assert search.steps(run) == [1, 2, 3]
    assert "could not be verified, so older ones stay" in capsys.readouterr().err
