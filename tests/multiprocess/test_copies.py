"""Copies, roll-backs and lost checkpoints of a run folder, by the real commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cmdist.checkpoints import search
from cmdist.tracking import courier
from cmdist.tracking import mlflow as tracking
from ranks import pipeline, train
from runs import add_store, call
from training import write_config

MORE = ["train.self_check=false", "train.checkpoint_every=2", "train.log_every=1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Path:
    """A run of 4 steps, checkpoints at 2 and 4, told to MLflow."""
    folder = tmp_path_factory.mktemp("copies")
    add_store(folder)
    write_config(folder, digits)
    go(folder, "small", 4)
    return folder


def go(folder: Path, name: str, steps: int, *more: str, code: int = 0) -> str:
    """Train to a step; what was said."""
    log, uri = folder / f"{name}-{steps}.log", f"tracking.uri=sqlite:///{folder}/mlflow.db"
    log.unlink(missing_ok=True)
    done = train(1, log, str(folder / "small.yaml"), *MORE, f"run.name={name}", f"train.steps={steps}", uri, *more)
    assert done.join() == [code], done.text
    if code == 0:
        assert courier.deliver(tracking.spool_folder(str(folder / "runs" / name)))
    return done.text


def told(folder: Path, name: str) -> tuple[dict[str, Any], list[int]]:
    """A run in MLflow by its folder's key, and the steps of its losses."""
    key = json.loads((folder / "runs" / name / "run.json").read_text())["id"]
    uri = f"sqlite:///{folder}/mlflow.db"
    (run,) = [run for run in tracking.runs(uri, "cmdist") if run["key"] == key]
    return run, [step for step, _ in tracking.history(uri, run["id"], "loss")]


@pytest.mark.parametrize("how", ["cp -r", "checkpoints.py copy"])
def test_a_copy_that_is_trained_on_is_a_new_run_that_names_its_origin(
    base: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    name, original = how.split()[0].removesuffix(".py"), base / "runs" / "small"
    if how == "cp -r":
        shutil.copytree(original, base / "runs" / name)
    else:
        call(pipeline("checkpoints").main, "copy", original, base / "runs" / name)
    said = go(base, name, 6, "optimizer.lr=0.01")
    assert (
        f"{base}/runs/{name} is a copy of {original}: a new run from here on" in said and "step         4 of 6" in said
    )
    first, copy = told(base, "small"), told(base, name)
    assert first[1] == [1, 2, 3, 4] and copy[1] == [5, 6] and first[0]["id"] != copy[0]["id"]
    assert first[0]["tags"]["cmdist.run"] == str(original) and copy[0]["params"]["optimizer.lr"] == "0.01"
    origin = json.loads(copy[0]["tags"]["cmdist.origin"])
    assert origin == {"id": first[0]["key"], "url": str(original), "step": 4}
    capsys.readouterr()
    compare = pipeline("compare")
    rows = compare.of_folders([str(original), str(base / "runs" / name)])
    assert [row.name for row in rows] == ["small", name] and rows[0].run["id"] != rows[1].run["id"]
    (note,) = compare.comparison.lineage(rows)
    assert note == f"{name} is a copy of {original} and goes on from its step 4"
    commits = [search.open_checkpoint(str(base / "runs" / name), step).commit["run"] for step in (4, 6)]
    assert commits == [first[0]["key"], copy[0]["key"]]


def test_a_copy_that_was_not_trained_on_is_one_row(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(base / "runs" / "small", base / "runs" / "untouched")
    rows = pipeline("compare").of_folders([str(base / "runs" / name) for name in ("small", "untouched")])
    assert [row.name for row in rows] == ["small"]
    assert "untouched is the same run as" in capsys.readouterr().err


def test_rolled_back_by_deleting_the_newest_checkpoint_the_new_branch_is_what_counts(base: Path) -> None:
    go(base, "rolled", 4)
    before = told(base, "rolled")
    (newest,) = (base / "runs" / "rolled" / "checkpoints").glob("step-0000000004-*")
    shutil.rmtree(newest)
    said = go(base, "rolled", 3, "optimizer.lr=0.02")
    assert "step         2 of 3" in said
    after = told(base, "rolled")
    assert before[1] == [1, 2, 3, 4] and after[1] == [1, 2, 3] and after[0]["id"] != before[0]["id"]
    assert after[0]["params"]["optimizer.lr"] == "0.02" and before[0]["key"] == after[0]["key"]


def test_lost_commits_are_a_refusal_and_nothing_is_lost(base: Path) -> None:
    """The tried case: a copy without the COMMIT files is not started over, and its data stay."""
    copy = base / "runs" / "filtered"
    shutil.copytree(base / "runs" / "small", copy, ignore=shutil.ignore_patterns("COMMIT"))
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.parent.name.startswith("step-"))
    said = go(base, "filtered", 6, code=2)
    assert "holds no committed checkpoint, but traces of earlier progress" in said and "but no COMMIT" in said
    assert sorted(path for path in copy.rglob("*") if path.is_file() and path.parent.name.startswith("step-")) == files
