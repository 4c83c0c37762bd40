"""pipelines/glance.py on small finished runs."""

import fcntl
import itertools
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from cmdist import build, models, seeding
from cmdist.core.noise import karras_sigmas
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.journal import Journal
from cmdist.tracking.mlflow import spool_folder
from inception import trusting, write
from ranks import pipeline
from runs import call, make_data, make_run


@pytest.fixture(scope="module")
def glance():
    return pipeline("glance")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_data(root / "data")
    return root


QUICK = {"steps": 10, "global_batch": 8, "micro_batch": 8, "glance_images": 256}


def untracked(run: Path) -> Path:
    """Without MLflow, which takes most of the time."""
    (run / "run.json").write_text(
        (run / "run.json").read_text().replace("sqlite:///", "none").replace(f"none{run.parent}/mlflow.db", "none")
    )
    return run


def record(run: Path) -> dict:
    return json.loads((run / "glances" / "step-0000000010.json").read_text())


def test_figures_grids_and_one_step_quality_reach_the_run_in_mlflow(root, glance):
    run = make_run(root, "ct", root / "data", train=QUICK)
    call(glance.main, run, "--checkpoint", 10)
    values = record(run)["values"]
    assert set(values) == {"consistency_error"}
    found = [
        r for r in tracking.runs(f"sqlite:///{root}/mlflow.db", "tests") if r["key"] == "key-ct" and r["parent"] is None
    ]
    assert tracking.history(f"sqlite:///{root}/mlflow.db", found[0]["id"], "consistency_error") == [
        (10, values["consistency_error"])
    ]
    assert "fd_1step" in found[0]["metrics"] and "fd_2step" not in found[0]["metrics"]
    assert len(list((root / "mlartifacts").rglob("glances/step-0000000010-?step.png"))) == 2
    assert Image.open(run / "glances" / "step-0000000010-1step.png").size[0] > 10 * 40


def test_the_consistency_error_is_what_its_definition_says(root):
    """Computed once more without core/validation.py, in one loop."""
    run = models.open_run(str(root / "ct"))
    denoise, data = build.load_denoiser(run), build.dataset(run.config)
    images, labels = data.images(range(64)).float() / 127.5 - 1, data.labels(range(64))
    noise = torch.randn(64, 1, 8, 8, generator=seeding.generator("cpu", 0, "validation"))
    ends = [denoise(images + v * noise, torch.full((64,), v), labels).double() for v in karras_sigmas(18).tolist()]
    total = sum((a - b).square().mean().item() ** 0.5 for a, b in itertools.pairwise(ends))
    assert record(root / "ct")["values"]["consistency_error"] == pytest.approx(total / 17, rel=1e-5)


def test_figures_do_not_depend_on_the_runs_seed_steps_or_curriculum(root, glance):
    """Same weights (they follow from the run's name), another seed, N(k) and batch: the same figures to the last
    digit.
    """
    settings = {
        "run": {"root": str(root / "other"), "name": "ct", "seed": 5},
        "curriculum": {"kind": "paper", "s1": 20},
    }
    run = make_run(
        root / "other", "ct", root / "data", train=QUICK | {"global_batch": 16, "micro_batch": 4}, **settings
    )
    call(glance.main, untracked(run), "--checkpoint", 10)
    assert record(run)["values"] == record(root / "ct")["values"]


def test_with_a_teacher_its_trajectories_are_measured_too(root, glance, capsys):
    make_run(root, "edm", root / "data", objective="denoising")
    run = make_run(root, "cd", root / "data", objective="consistency_distillation", teacher=str(root / "edm"))
    points = Journal(spool_folder(str(run)))
    before = len(list(points.read()))
    call(glance.main, run, "--checkpoint", 10)
    assert set(record(run)["values"]) == {"consistency_error", "consistency_error_ode", "teacher_distance"}
    added = [r for r, _ in points.read()][before:]
    assert [r["kind"] for r in added] == ["artifact", "artifact", "metrics"]
    call(glance.main, run, "--checkpoint", 10)  # again, as after a restart of the training: nothing is sent twice
    assert len(list(points.read())) == before + 3


def test_a_denoising_run_has_its_grid(root, glance):
    run = make_run(root, "edm2", root / "data", objective="denoising", train=QUICK)
    call(glance.main, untracked(run), "--checkpoint", 10)
    assert record(run)["values"] == {} and (run / "glances" / "step-0000000010-ode.png").exists()


def test_without_an_extractor_validation_is_there_and_quality_needs_inception(root, glance, capsys):
    data = make_data(root / "plain", extractor=False)
    run = make_run(root, "plain-run", data)
    call(glance.main, untracked(run), "--checkpoint", 10)
    assert "no quality at a glance: the data set has no extractor of its own, and evaluation" in capsys.readouterr().out
    assert record(run)["values"]["consistency_error"] > 0
    weights = write(root / "inception.pt")
    run = make_run(
        root,
        "inception-run",
        data,
        evaluation={"inception": weights, "trusted": trusting(weights)[3:]},
        train=QUICK | {"precision": "fp32", "ema": [0.9]},
    )
    call(glance.main, untracked(run), "--checkpoint", 10)
    (found,) = (json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json"))
    assert list(found["metrics"]) == ["kid_1step"] and found["protocol"]["n"] == 256


def test_the_next_glance_waits_for_the_one_before(root, glance):
    run = make_run(root, "waits", root / "data", train=QUICK)
    lock = (spool_folder(str(run)) / "glance.lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(target=call, args=(glance.main, untracked(run), "--checkpoint", 10))
    thread.start()
    time.sleep(0.3)
    assert not (run / "glances").exists()
    lock.close()
    thread.join(60)
    assert record(run)["step"] == 10
