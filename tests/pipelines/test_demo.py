"""The demo is a study: its file is the one that says what is trained, and the command does the rest."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from cmdist.errors import CmdistError, ConfigError
from cmdist.studies import grid
from ranks import pipeline

ROOT = Path(__file__).parents[2]
demo = pipeline("demo")
SHORT = """
title: A short demo
question: Does it end?
data: data
prepare: [digits]
names: group
keys: {train.steps: 2, train.glance_every: 0, train.self_check: false, tracking.experiment: digits}
seeds: [1]
groups:
  edm: {config: configs/digits/edm.yaml, measure: {n: 128}}
"""


def test_the_rows_are_a_teacher_its_student_one_without_an_ode_and_a_flow_map() -> None:
    study = grid.load(str(ROOT / demo.STUDY))
    assert list(study.groups) == ["edm", "trigflow", "mean_flow", "cd", "sct"]
    cells = {cell.group: cell for cell in grid.cells(study, "runs/digits", prepared=False)}
    assert {name: cell.config.kind_name for name, cell in cells.items() if name != "trigflow"} == {
        "edm": "denoising",
        "cd": "consistency_distillation",
        "sct": "scm_training",
        "mean_flow": "mean_flow",
    }
    assert cells["cd"].config.teacher == cells["edm"].url and cells["cd"].url.endswith("runs/digits/cd")


@pytest.mark.timeout(240)
def test_it_trains_measures_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo.yaml").write_text(SHORT)
    monkeypatch.setattr(demo, "STUDY", str(tmp_path / "demo.yaml"))
    root = tmp_path / "digits"
    demo.main(["--root", str(root)])
    said = capfd.readouterr().out
    assert "1 run, 0 there" in said and "begins; output in" in said and "whole demo" in said
    assert (root / "comparison/report.html").exists() and (root / "pages/demo.md").exists()
    assert re.search(r"^edm +denoising", said, re.MULTILINE)
    study = grid.load(demo.STUDY)
    assert not any(cell.missing() for cell in grid.cells(study, str(root)))
    with pytest.raises(ConfigError, match="edm was trained with run.seed = 1 and the study has 2: take another --root"):
        grid.cells(grid.load(demo.STUDY, seeds=[2]), str(root))


STAND_IN = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path("told").touch()
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
pathlib.Path("begun").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("first", [(), (signal.SIGINT,)])  # which the terminal sends to all
def test_who_is_told_to_end_leaves_nothing_running(
    first: tuple[signal.Signals, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/study.py").write_text(STAND_IN)
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def end() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        for number in (*first, signal.SIGTERM):
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(CmdistError, match=r"study.py ended with 7; `make demo` goes on from there"):
        demo.run("study.py")
    thread.join(10)
    assert (tmp_path / "told").exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_runs_named_by_group_are_one_for_each(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(SHORT.replace("seeds: [1]", "seeds: [1, 2]"))
    with pytest.raises(ConfigError, match="names: group is for one seed and groups without axes"):
        grid.load(str(tmp_path / "demo.yaml"))
    assert grid.load(str(tmp_path / "demo.yaml"), seeds=[3]).seeds == (3,)
