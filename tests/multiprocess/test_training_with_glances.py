"""Training with glances beside it, by real processes."""

import fcntl
import json
import time
from pathlib import Path

import pytest

from cmdist import tracking
from ranks import train
from training import CT, files, write_config


def wait_for_glance(run: Path, step: int, seconds: float = 120) -> None:
    """Until the glance at `step` has ended; it outlives the training."""
    spool, deadline = tracking.spool_folder(str(run)), time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (run / "glances" / f"step-{step:010d}.json").exists():
            with (spool / "glance.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
            return
        time.sleep(0.1)
    raise AssertionError((spool / "glance.log").read_text())


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert train(1, folder / "log", write_config(folder, digits), *CT).join() == [0]
    return folder / "runs" / "small"


def test_weights_are_the_same_with_glances_that_crash(digits, plain, tmp_path):
    """This data set has no extractor, so each glance fails in the middle: training takes no notice."""
    config = write_config(tmp_path, digits)
    run = train(1, tmp_path / "log", config, *CT, "train.glance_every=20", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    assert run.join() == [0], run.text
    folder = tmp_path / "runs" / "small"
    for step in (10, 20):
        assert files(folder, step) == files(plain, step)
    wait_for_glance(folder, 20)
    assert "error" in (tracking.spool_folder(str(folder)) / "glance.log").read_text() and "glance" not in run.text
    assert tracking.deliver(tracking.spool_folder(str(folder)))
    (found,) = [r for r in tracking.runs(f"sqlite:///{tmp_path}/mlflow.db", "cmdist") if r["parent"] is None]
    history = dict(tracking.history(f"sqlite:///{tmp_path}/mlflow.db", found["id"], "consistency_error"))
    assert history[20] == json.loads((folder / "glances" / "step-0000000020.json").read_text())["values"]["consistency_error"]
    assert "device_hours" in found["metrics"] and found["tags"]["mlflow.source.git.commit"]
    assert {p.name for p in (tmp_path / "mlartifacts").rglob("attempts/*")} == {"environment-000001.json", "config-000001.yaml"}
