"""pipelines/compare.py on small runs whose figures are put into MLflow by evaluate.py."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cmdist.errors import ConfigError, DataError
from ranks import pipeline
from runs import call, make_data, make_run

compare = pipeline("compare")
evaluate = pipeline("evaluate")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    data = make_data(root / "data")
    made = {"edm": make_run(root, "edm", data, objective="denoising")}
    made["cd"] = make_run(root, "cd", data, objective="consistency_distillation", teacher=str(root / "edm"))
    made["ct"] = make_run(root, "ct", data)
    for run in made.values():
        call(evaluate.main, run, "--n", "300")
    call(evaluate.main, "reference", str(data), "--n", "300")
    made["odd"] = make_run(root, "odd", data)
    call(evaluate.main, str(made["odd"]), "--n", "256")
    made["new"] = make_run(root, "new", data)  # not evaluated
    return made


def compared(capsys, *arguments: str) -> tuple[dict[str, list[str]], str]:
    capsys.readouterr()
    call(compare.main, *arguments)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.count("  ") >= 6]
    return {
        cells[0]: cells
        for cells in (
            [c.strip() for c in line.replace(" [B]", "[B]").replace(" (B)", "(B)").replace(" min", "_min").split("  ") if c.strip()]
            for line in lines
        )
    }, text


def value(run: Path, metric: str) -> str:
    (path,) = (run / "evaluations").glob(f"*{metric}*.json")
    return f"{json.loads(path.read_text())['value']:.2f}"


def test_table_shows_each_runs_figures(runs, capsys, tmp_path):
    rows, text = compared(capsys, *(str(runs[name]) for name in ("edm", "cd", "ct")), "--out", str(tmp_path))
    ode = value(runs["edm"], "fd_ode")
    assert rows["edm"] == ["edm", "denoising", "10", "0.9", "-", "-", ode, "10_min"]
    one, two = value(runs["cd"], "fd_1step"), value(runs["cd"], "fd_2step")
    assert rows["cd"] == ["cd", "consistency_distillation", "10", "0.9", one, two, f"({ode})", "10_min"]  # the teacher's in brackets
    assert rows["ct"][-2:] == ["-", "10_min"]
    assert "(B)" not in text and "for reference: real images, drawn with replacement" in text
    assert Image.open(tmp_path / "comparison.png").size == (1440, 540)
    assert Image.open(tmp_path / "samples.png").height > 5 * 4 * 40  # five blocks of four rows


def test_figures_of_another_protocol_have_columns_of_their_own_unless_mixed(runs, capsys, tmp_path):
    folders = [str(runs[name]) for name in ("cd", "ct", "odd")]
    rows, text = compared(capsys, *folders, "--out", str(tmp_path))
    assert rows["run"][4:8] == ["FD one-step", "FD one-step(B)", "FD two-step", "FD two-step(B)"]
    assert rows["odd"][4:8] == ["-", value(runs["odd"], "fd_1step"), "-", value(runs["odd"], "fd_2step")]
    assert rows["cd"][5] == rows["cd"][7] == rows["ct"][5] == "-"
    (note,) = [line for line in text.splitlines() if line.startswith("(B)")]
    assert note == "(B) not comparable with the rest: odd fd_1step, odd fd_2step (n 256, not 300; seeds [0, 255], not [0, 299])"
    rows, text = compared(capsys, *folders, "--out", str(tmp_path), "--mixed")
    assert rows["run"][4:6] == ["FD one-step", "FD two-step"]
    assert rows["odd"][4:6] == [value(runs["odd"], "fd_1step") + "[B]", value(runs["odd"], "fd_2step") + "[B]"]
    assert "[B]" not in "".join(rows["cd"] + rows["ct"])
    assert "<small>(B)</small>" in (tmp_path / "report.html").read_text()


def test_run_without_figures_and_whole_experiment(runs, capsys, tmp_path):
    uri = f"sqlite:///{runs['ct'].parent}/mlflow.db"
    everything = runs["new"]
    compared(capsys, str(everything), "--out", str(tmp_path))  # delivers its journal
    rows, _ = compared(capsys, "--experiment", "tests", "--uri", uri, "--out", str(tmp_path))
    assert {"edm", "cd", "ct", "odd", "new"} <= set(rows)
    assert rows["new"][2:7] == ["-", "-", "-", "-", "-"]


def test_what_cannot_be_compared_is_a_sentence(runs, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="give run folders or --experiment"):
        call(compare.main)
    with pytest.raises(ConfigError, match="needs --uri"):
        call(compare.main, "--experiment", "x")
    with pytest.raises(DataError, match="is not a run folder"):
        call(compare.main, str(tmp_path))
    with pytest.raises(DataError, match="holds no runs"):
        call(compare.main, "--experiment", "nothing", "--uri", f"sqlite:///{runs['ct'].parent}/mlflow.db")
