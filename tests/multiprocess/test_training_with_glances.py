"""Training with a glance beside it, by real processes."""

import fcntl
import json
import time
from pathlib import Path

from cmdist import tracking
from ranks import train
from training import CT, files, write_config

SHORT = [*CT, "train.steps=6", "train.checkpoint_every=3"]


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


def test_weights_are_the_same_with_a_glance_that_crashes(digits, tmp_path):
    """This data set has no extractor, so the glance fails behind its first half: training takes no notice."""
    config = write_config(tmp_path, digits)
    run = train(1, tmp_path / "log", config, *SHORT, "train.glance_every=6")
    plain = train(1, tmp_path / "plain.log", config, *SHORT, "run.name=plain")
    assert (run.join(), plain.join()) == ([0], [0]), run.text + plain.text
    folder = tmp_path / "runs" / "small"
    for step in (3, 6):
        assert files(folder, step) == files(tmp_path / "runs" / "plain", step)
    wait_for_glance(folder, 6)
    log = tracking.spool_folder(str(folder)) / "glance.log"
    assert "error" in log.read_text() and "glance" not in run.text
    assert json.loads((folder / "glances" / "step-0000000006.json").read_text())["values"]["consistency_error"] > 0
    assert not (tmp_path / "runs" / "plain" / "glances").exists()
