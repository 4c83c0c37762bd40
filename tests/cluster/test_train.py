"""The shipped training script on a real Slurm, 2 nodes of 2 ranks: interrupted, it comes back by itself and nothing of the run shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ranks import train
from slurm import Job, Slurm, until
from training import OBJECTIVES, committed, files, write_config

STEPS = 150
COMMON = [*OBJECTIVES["ct"], f"train.steps={STEPS}", "train.checkpoint_every=50"]
SMALL = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, digits: str) -> dict[str, Any]:
    """The files of the last step of a run of 4 ranks that nobody interrupted, started without Slurm."""
    folder = tmp_path_factory.mktemp("straight")
    run = train(4, folder / "log", write_config(folder, digits), *COMMON)
    assert run.join() == [0, 0, 0, 0], run.text
    return files(folder / "runs" / "small", STEPS)


def submit(slurm: Slurm, folder: Path, digits: str, *overrides: str, options: tuple[str, ...] = (), **environment: str) -> Job:
    config = write_config(folder, digits)
    return Job(slurm, folder, "cluster/train_lsun.sbatch", [config, *COMMON, *overrides], [*SMALL, *options], **environment)


def under_way(job: Job, step: int = 50, root: Path | None = None) -> None:
    """Wait until the training steps of this start run, and `step` is committed."""
    job.until(lambda: committed((root or job.folder) / "runs" / "small", step))


def test_usr1_commits_requeues_and_loses_nothing(slurm: Slurm, tmp_path: Path, digits: str, straight: dict[str, Any]) -> None:
    job = submit(slurm, tmp_path, digits)
    under_way(job)
    job.signal_batch("USR1")
    job.until_requeued(1)
    assert "stopped by SIGUSR1 after step" in job.log
    assert job.until_over() == "COMPLETED", job.log
    assert files(tmp_path / "runs" / "small", STEPS) == straight
    assert "finished" in job.log and job.show("Restarts") == "1"
