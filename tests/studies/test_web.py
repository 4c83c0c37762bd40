"""The report of a study: a file that needs no other, with the pictures of its runs and its data."""

import base64
import json
import re
from pathlib import Path

import pytest

from cmdist import config as configuration
from cmdist.migrations import EVALUATION
from cmdist.report import grids, tables
from cmdist.studies import grid, page, parent, web
from cmdist.studies.grid import Cell, Study
from cmdist.tracking import courier
from cmdist.tracking import mlflow as tracking
from ranks import pipeline
from runs import make_data, make_run
from studies.small import STUDY, write

NASTY = "A <small> & odd study"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, list[Cell], str]:
    """A study of which two runs were measured, one of them in one and in two steps, and its tables and figures."""
    text = STUDY.replace("A small study", f'"{NASTY}"').replace("seeds: [1, 2]", "seeds: [1]")
    claim = "claims: [{claim: l1 < l2, seen: 'it is {{median: cd distance=l1 1}}', verdict: reproduced}]"
    study = grid.load(write(tmp_path, f"{text.partition('text:')[0]}{claim}\n"))
    monkeypatch.setattr(page, "_seconds", lambda cell, step: 60.0)
    data, cells = make_data(tmp_path / "data"), []
    for name, objective, axes, samplers in (
        ("edm", "denoising", {}, {"heun": 9.0}),
        ("l1", "consistency_training", {"distance": "l1"}, {"1": 30.0, "2": 12.5}),
        ("l2", "consistency_training", {"distance": "l2"}, {}),
    ):
        run = make_run(tmp_path / "runs", name, data, objective, step=4)
        config = configuration.load(str(run / "config.yaml"))
        group = "cd" if axes else "teacher"
        cells.append(Cell(group, axes, 1, config, study.groups[group].measure, ()))
        for sampler, value in samplers.items():
            measured(run, config.train.ema[0], sampler, value)
    folder = str(tmp_path / "pages/small")
    page.write(study, "small", cells, str(tmp_path / "pages"))
    return study, cells, folder


def measured(run: Path, ema: float, sampler: str, value: float) -> None:
    """A record of 128 images, with a picture."""
    how = {"sampler": "heun", "steps": 4} if sampler == "heun" else {"times": [80.0, 0.8][: int(sampler)]}
    name = "ode" if sampler == "heun" else f"{sampler}step"
    stem = str(run / f"evaluations/step-0000000004-fd_{name}-1")
    record = {
        "title": f"{sampler} of it", "step": 4, "protocol": {"space": "fd", "n": 128, "seeds": [0, 127]},
        "protocol_id": "x", "sampling": how | {"ema": ema}, "checkpoint": {"weights": "y"},
        "metrics": {f"fd_{name}": value}, "images": "z", "code": "c", "device": "cpu", "ranks": 1, "time": 1,
        "seconds": 1.0, "identity": "i", "stem": stem,
    }  # fmt: skip
    Path(stem).parent.mkdir(exist_ok=True)
    Path(f"{stem}.png").write_bytes(b"picture of " + sampler.encode())
    Path(f"{stem}.json").write_text(json.dumps(EVALUATION.stamp(record)))


def test_it_needs_no_other_file_and_has_the_data(made: tuple[Study, list[Cell], str], tmp_path: Path) -> None:
    study, cells, folder = made
    text = Path(web.write(study, "small", cells, folder, str(tmp_path / "reports"))).read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:") for source in sources)
    assert NASTY not in text and "A &lt;small&gt; &amp; odd study" in text and "l1 &lt; l2" in text
    figures = next(source for source in sources if source.startswith("data:text/csv"))
    assert base64.b64decode(figures.partition(",")[2]).decode() == (Path(folder) / "figures.csv").read_text()
    for value in ("30", "12.5", "9"):
        assert f">{value}</td>" in text


def test_pictures_are_those_of_the_fewest_steps_side_by_side(made: tuple[Study, list[Cell], str]) -> None:
    study, cells, folder = made
    text = str(web.document(study, "small", cells, folder))
    shown = [base64.b64decode(each).decode() for each in re.findall(r"data:image/png;base64,([^\"]*)", text)]
    assert shown == ["picture of heun", "picture of 1"]
    assert "cd l1: 1 of it" in text and "cd l2" not in text.partition("Pictures")[2]


def test_costs_are_drawn_of_every_place(made: tuple[Study, list[Cell], str]) -> None:
    _, _, folder = made
    assert {row["group"] for row in tables.read(folder, "medians")} == {"teacher", "cd"}
    assert list(grids.COSTS) == ["images", "tflop", "seconds"]
    assert all((Path(folder) / f"costs-{theme}.svg").stat().st_size > 10_000 for theme in ("light", "dark"))


def test_in_mlflow_a_study_is_the_parent_of_its_runs(made: tuple[Study, list[Cell], str], tmp_path: Path) -> None:
    study, cells, folder = made
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    courier.deliver(Path(tracking.spool_folder(cells[0].url)))
    courier.deliver(Path(tracking.spool_folder(cells[1].url)))
    id_ = parent.log(study, "small", cells, folder, [f"{folder}.md", f"{folder}/medians.csv"])
    assert parent.log(study, "small", cells, folder, []) == id_
    other = parent.log(study, "other", cells, folder, [])
    found = {run["id"]: run for run in tracking.runs(uri, "tests")}
    assert id_ is not None and other not in (None, id_) and len(found) == 4
    children = [run for run in found.values() if run["study"]]
    assert {run["name"] for run in children} == {"edm", "l1"} and {run["study"] for run in children} == {id_}
    assert not any(run["parent"] for run in found.values())  # that is of evaluations
    shown = pipeline("compare").of_experiment(uri, "tests")
    assert [row.name for row in shown] == ["edm", "l1"]
    assert found[id_]["metrics"] == {
        "fd_ode/teacher/at 4": 9.0, "fd_1step/cd/distance l1/at 4": 30.0, "fd_2step/cd/distance l1/at 4": 12.5
    }  # fmt: skip
    names = {item.path for item in tracking.connect(uri).list_artifacts(id_)}
    assert names == {"small.md", "medians.csv"}


def test_a_server_that_is_down_is_one_error(made: tuple[Study, list[Cell], str], tmp_path: Path) -> None:
    study, cells, folder = made
    for cell in cells:
        place = Path(cell.url) / "run.json"
        place.write_text(place.read_text().replace(f"sqlite:///{tmp_path}/runs/mlflow.db", "http://127.0.0.1:9"))
    with pytest.raises(tracking.TrackingError, match=r"http://127.0.0.1:9 did not take the study"):
        parent.log(study, "small", cells, folder, [])


def test_runs_that_are_tracked_nowhere_have_no_parent(made: tuple[Study, list[Cell], str], tmp_path: Path) -> None:
    study, cells, folder = made
    for cell in cells:
        place = Path(cell.url) / "run.json"
        place.write_text(place.read_text().replace(f"sqlite:///{tmp_path}/runs/mlflow.db", "none"))
    assert parent.log(study, "small", cells, folder, []) is None
