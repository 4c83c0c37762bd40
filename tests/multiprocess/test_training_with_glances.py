"""Training with glances beside it, by real processes."""

import json
import time
from pathlib import Path

import psutil
import pytest

from cmdist.tracking import mlflow as tracking
from ranks import train
from training import CT, files, write_config

SHORT = [*CT, "train.steps=6", "train.checkpoint_every=3"]


def glances_of(run: Path) -> list[psutil.Process]:
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(run) in (p.info["cmdline"] or []) and "--checkpoint" in p.info["cmdline"]
    ]


def test_weights_are_the_same_with_glances_that_are_killed(digits, tmp_path):
    config, folder = write_config(tmp_path, digits), tmp_path / "runs" / "small"
    run = train(1, tmp_path / "log", config, *SHORT, "train.glance_every=3")
    plain = train(1, tmp_path / "plain.log", config, *SHORT, "run.name=plain")
    killed = 0
    try:
        while any(process.exitcode is None for process in run.processes):
            for glance in glances_of(folder):
                glance.kill()
                killed += 1
            time.sleep(0.1)
        assert (run.join(), plain.join()) == ([0], [0]), run.text + plain.text
    finally:
        for glance in glances_of(folder):  # of the last step: it outlives the training
            glance.kill()
            killed += 1
    assert killed >= 2 and "glance" not in run.text
    for step in (3, 6):
        assert files(folder, step) == files(tmp_path / "runs" / "plain", step)
    assert not (tmp_path / "runs" / "plain" / "glances").exists()


@pytest.mark.slow  # lowest priority: on a busy machine it takes as long as it likes
def test_a_glance_that_crashes_in_the_middle_has_left_its_first_half(digits, tmp_path):
    """Without Inception's file it fails behind the validation."""
    missing = f"evaluation.inception={tmp_path}/inception.pt"
    run = train(1, tmp_path / "log", write_config(tmp_path, digits), *SHORT, "train.glance_every=6", missing)
    assert run.join() == [0], run.text
    folder, deadline = tmp_path / "runs" / "small", time.monotonic() + 240
    spool, record = tracking.spool_folder(str(folder)), folder / "glances" / "step-0000000006.json"
    while f"the Inception weights {tmp_path}/inception.pt are not there" not in (spool / "glance.log").read_text():
        assert time.monotonic() < deadline, (spool / "glance.log").read_text()
        time.sleep(0.1)
    assert json.loads(record.read_text())["values"]["consistency_error"] > 0
