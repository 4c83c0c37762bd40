"""The plan of a run: what is submitted, with which dependencies, and what `status` says."""

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from slurm import Slurm

from ranks import REPOSITORY
from runs import make_data, make_run

sys.path.insert(0, str(REPOSITORY / "cluster"))
import launch

CONFIG = str(REPOSITORY / "configs" / "lsun_bedroom256" / "cd.yaml")


def test_a_dry_run_prints_the_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", lambda *a: pytest.fail("submitted"))
    launch.main([CONFIG, "run.root=/runs", "--nodes", "16", "--dry-run", "--n", "100", "--sbatch=--partition=gpu"])
    training, watching, evaluations = [shlex.split(line.partition("=$(")[2].rstrip(")")) for line in capsys.readouterr().out.splitlines()]
    for command in (training, watching, evaluations):
        assert command[:4] == ["sbatch", "--parsable", "--comment=cmdist /runs/cd", "--partition=gpu"]
    assert training[4] == "--nodes=16" and training[5].endswith("train_lsun.sbatch") and training[6:] == [CONFIG, "run.root=/runs"]
    assert watching[4] == "--dependency=after:$TRAINING" and watching[-4:] == ["--watch", "/runs/cd", "--n", "100"]
    assert evaluations[4:7] == ["--dependency=afterok:$TRAINING", "--kill-on-invalid-dep=yes", "--array=0-5%2"]
    averages = ["0.9999432189950708", "0.99994", "0.9999"]
    assert evaluations[-7:] == ["--each", *(f"--ema {ema} --steps {n}" for ema in averages for n in (1, 2))]


def test_an_unknown_average_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--ema 0.5 is not in train.ema"):
        launch.main([CONFIG, "--ema", "0.5", "--dry-run"])


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(launch.SlurmError, match="sbatch is not on this machine"):
        launch.main([CONFIG])


def test_variables_of_a_job_and_a_launcher_do_not_reach_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text(f"#!/bin/bash\nenv >> {tmp_path}/env\necho '7;cluster'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    leaks = {"SLURM_JOB_ID": "3", "SLURM_PROCID": "1", "RANK": "1", "WORLD_SIZE": "9", "LOCAL_RANK": "1", "MASTER_PORT": "1"}
    for name, value in (leaks | {"SLURM_CONF": "/etc/x", "SBATCH_ACCOUNT": "me"}).items():
        monkeypatch.setenv(name, value)
    launch.main([CONFIG])
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert not names & leaks.keys() and {"SLURM_CONF", "SBATCH_ACCOUNT"} <= names
    assert "training     job 7" in capsys.readouterr().out


def test_a_queue_that_does_not_answer_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/bash\necho '{name}: error: no answer' >&2\necho '{name}: fatal: gave up' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(launch.SlurmError, match=r"^training was not submitted: sbatch: error: no answer; sbatch: fatal: gave up$"):
        launch.main([CONFIG])
    with pytest.raises(ValueError, match="nowhere is not a run folder"):
        launch.main(["status", str(tmp_path / "nowhere")])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "job          the queue could not be read: squeue: error: no answer; squeue: fatal: gave up"
    ]


def test_status_and_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    run = make_run(tmp_path, "small", make_data(tmp_path / "data"), step=10)
    launch.main(["steps", str(run)])
    assert capsys.readouterr().out.split() == ["10", "finished"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plan_runs_to_its_end(slurm: Slurm, tmp_path: Path) -> None:
    """Training on 2 nodes, an evaluation job beside it and an array after it, all in one MLflow run."""
    from slurm import until

    from cmdist import tracking
    from training import OBJECTIVES, SMALL, write_config

    for name in ("cluster", "pipelines", "configs", "cmdist"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = write_config(tmp_path, str(make_data(tmp_path / "data")), SMALL.replace("uri: none", f"uri: '{uri}', experiment: plan"))
    size = "--gpus-per-node=0 --cpus-per-task=1 --ntasks-per-node=1"
    said = slurm.call(
        sys.executable, "cluster/launch.py", config, "--nodes", "2", *OBJECTIVES["ct"], "--n", "128", "--ema", "0.99", f"--sbatch={size}",
        cwd=tmp_path, PYTHON=sys.executable, POLL="2",
    )  # fmt: skip
    assert said.count(" job ") == 3, said
    begin = time.monotonic()
    until(lambda: not slurm.call("squeue", "--noheader").strip(), 500)
    logs = "\n".join(path.read_text() for path in [*tmp_path.glob("*.log"), *tmp_path.glob("logs/*/*.log")])
    figures = sorted(path.name.split("-")[1:3] for path in (tmp_path / "runs" / "small" / "evaluations").glob("*.json"))
    # the watching job: one and two steps with the first average of both committed steps; the array: those of the other one, of the last
    assert len(figures) == 6, f"{logs} {time.monotonic() - begin}"
    noted = tracking.runs(uri, "plan")
    parents = [run for run in noted if run["parent"] is None]
    assert len(parents) == 1 and {run["parent"] for run in noted if run["parent"]} == {parents[0]["id"]} and len(noted) == 7
    shown = slurm.call(sys.executable, "cluster/launch.py", "status", str(tmp_path / "runs" / "small"), cwd=tmp_path)
    assert "step         20 of 20 is committed" in shown and "steps/s" in shown and "at step 20, EMA 0.99, 128 images" in shown
