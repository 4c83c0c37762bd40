"""Where an attempt goes another way than the one before it: its points replace those that were given up."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cmdist.report import comparison
from cmdist.tracking import branches, courier, delivery
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.journal import Journal
from cmdist.tracking.mlflow import Tracker
from ranks import pipeline
from runs import add_store, call

SLOW, FAST = {"optimizer.lr": 0.1, "train.steps": 30}, {"optimizer.lr": 0.2, "train.steps": 30}


def uri(folder: Path) -> str:
    add_store(folder)
    return f"sqlite:///{folder}/mlflow.db"


def attempt(
    folder: Path,
    number: int,
    steps: Sequence[int],
    slope: float = 1.0,
    params: dict[str, object] | None = None,
    spool: str = "tracking",
    key: str = "key-1",
) -> None:
    """Train from the step before the first one on; what was logged is delivered."""
    tracker = Tracker.start(
        uri(folder), "tests", "run", key, params or SLOW, {"cmdist.run": str(folder)}, folder / spool, courier=False,
        attempt=number, begin=steps[0] - 1,
    )  # fmt: skip
    for step in steps:
        tracker.log(step, {"loss": slope / step, "wall_seconds": float(step + number)})
    tracker.close()
    assert courier.deliver(folder / spool)


def points(folder: Path, run: dict[str, Any], metric: str = "loss") -> dict[int, float]:
    found = tracking.history(uri(folder), run["id"], metric)
    assert len(dict(found)) == len(found), "each step once"
    return dict(found)


def current(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run of the key, and those that were given up."""
    parents = [run for run in tracking.runs(uri(folder), "tests") if run["parent"] is None]
    (run,) = [run for run in parents if run["key"] == "key-1"]
    return run, [other for other in parents if other is not run]


def evaluate(folder: Path, step: int) -> None:
    tracking.log_evaluation(uri(folder), "tests", "key-1", f"e{step}", step, step, {"fd_1step": 1.0 * step}, {})


def rolled_back(folder: Path) -> None:
    """Steps 1 to 30 at one learning rate, evaluated twice; then from step 10 on at another one."""
    attempt(folder, 1, range(1, 31))
    evaluate(folder, 10)
    evaluate(folder, 20)
    attempt(folder, 2, range(11, 16), slope=3.0, params=FAST)


TRUTH = {step: 1.0 / step for step in range(1, 11)} | {step: 3.0 / step for step in range(11, 16)}


def check(folder: Path) -> None:
    run, (old,) = current(folder)
    assert points(folder, run) == TRUTH
    assert points(folder, run, "wall_seconds") == {s: s + (1.0 if s < 11 else 2.0) for s in range(1, 16)}
    assert run["params"]["optimizer.lr"] == "0.2" and run["tags"]["attempts"] == "2" and run["name"] == "run"
    assert run["status"] == "FINISHED" and run["tags"]["cmdist.run"] == str(folder)
    assert points(folder, old) == {step: 1.0 / step for step in range(1, 31)}, "nothing is lost"
    assert old["name"] == "run (given up after step 10)" and old["key"] is None and branches.GIVEN_UP in old["tags"]
    children = {c["tags"]["step"]: c["parent"] for c in tracking.runs(uri(folder), "tests") if c["parent"]}
    assert children == {"10": run["id"], "20": old["id"]}
    assert [step for step, _ in tracking.history(uri(folder), run["id"], "fd_1step")] == [10]


def test_after_a_roll_back_with_another_learning_rate_the_later_points_count(tmp_path, capsys):
    rolled_back(tmp_path)
    check(tmp_path)
    run, _ = current(tmp_path)
    (note,) = comparison.lineage(comparison.make_rows([run], [], uri(tmp_path)))
    assert note == (
        "run went on from step 10 in attempt 2 (optimizer.lr 0.1 -> 0.2); what it had done beyond is in MLflow as "
        "'run (given up after step 10)'"
    )
    compare = pipeline("compare")
    call(compare.main, "--experiment", "tests", "--uri", uri(tmp_path), "--out", tmp_path / "comparison")
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if line.startswith("run ")]) == 3, "head, row and note"
    assert note in said
    assert "given up after step 10)</th>" not in (tmp_path / "comparison" / "report.html").read_text()


def test_delivered_again_from_the_beginning_nothing_changes(tmp_path):
    rolled_back(tmp_path)
    Journal(tmp_path / "tracking").set_cursor({"place": 0})
    assert courier.deliver(tmp_path / "tracking")
    check(tmp_path)


@pytest.mark.parametrize("cut", (5, 11, 14))
def test_a_branching_that_is_cut_short_is_finished_by_the_next_delivery(tmp_path, monkeypatch, cut):
    calls = [0]

    class Mortal:
        """A client whose process is killed at the `cut`-th request of the branching."""

        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            method = getattr(self._client, name)

            def ask(*arguments, **keywords):
                calls[0] += 1
                if calls[0] > cut:
                    raise KeyboardInterrupt
                return method(*arguments, **keywords)

            return ask

    attempt(tmp_path, 1, range(1, 31))
    evaluate(tmp_path, 10)
    evaluate(tmp_path, 20)
    original = branches.branch_off
    with monkeypatch.context() as patch:
        patch.setattr(delivery.branches, "branch_off", lambda client, *rest: original(Mortal(client), *rest))
        with pytest.raises(KeyboardInterrupt):
            attempt(tmp_path, 2, range(11, 16), slope=3.0, params=FAST)
    assert courier.deliver(tmp_path / "tracking")
    assert calls[0] == cut + 1
    check(tmp_path)


def test_another_way_with_the_same_configuration_is_known_by_its_loss(tmp_path):
    """A repaired data set, other code: the sibling that no parameter tells."""
    attempt(tmp_path, 1, range(1, 31))
    attempt(tmp_path, 2, range(11, 16), slope=3.0)
    run, (old,) = current(tmp_path)
    assert points(tmp_path, run) == TRUTH and len(points(tmp_path, old)) == 30
    assert json.loads(run["tags"][branches.BRANCHED])["changed"] == {"loss": "0.0909091 -> 0.272727 at step 11"}
    assert run["params"]["optimizer.lr"] == "0.1" and run["tags"]["cmdist.run"] == str(tmp_path)


def test_a_repetition_is_no_branch_even_if_last_bits_differ(tmp_path):
    attempt(tmp_path, 1, range(1, 31))
    attempt(tmp_path, 2, range(11, 41), slope=1.0001, params=SLOW | {"train.steps": 40})
    run, others = current(tmp_path)
    assert others == [] and list(points(tmp_path, run)) == list(range(1, 41))
    assert points(tmp_path, run)[20] == 1.0 / 20 and points(tmp_path, run)[40] == 1.0001 / 40


def test_a_change_without_repeated_steps_is_no_branch(tmp_path):
    attempt(tmp_path, 1, range(1, 11))
    attempt(tmp_path, 2, range(11, 16), slope=3.0, params=FAST)
    run, others = current(tmp_path)
    assert others == [] and points(tmp_path, run) == TRUTH
    assert json.loads(run["tags"]["params of attempt 2"]) == {"optimizer.lr": "0.2"}
    attempt(tmp_path, 3, range(16, 18), slope=3.0, params=FAST)
    assert current(tmp_path)[1] == []


def test_what_another_node_had_still_to_deliver_of_a_branch_given_up_stays_out(tmp_path):
    attempt(tmp_path, 1, range(1, 16), spool="node-a")
    late = Journal(tmp_path / "node-a")
    late.append({"kind": "metrics", "time": 1, "step": 16, "values": {"loss": 1.0 / 16}})
    attempt(tmp_path, 2, range(11, 14), slope=3.0, params=FAST, spool="node-b")
    assert courier.deliver(tmp_path / "node-a")
    run, _ = current(tmp_path)
    assert points(tmp_path, run) == {step: value for step, value in TRUTH.items() if step < 14}


def test_a_run_restarted_under_the_same_name_loses_no_point(tmp_path):
    """The folder was deleted, the journal of its URL is in the user's cache: another key, the same spool."""
    attempt(tmp_path, 1, range(1, 31), key="key-0")
    attempt(tmp_path, 1, range(1, 6), slope=3.0)
    run, (before,) = current(tmp_path)
    assert points(tmp_path, run) == {step: 3.0 / step for step in range(1, 6)}
    assert before["key"] == "key-0" and len(points(tmp_path, before)) == 30
