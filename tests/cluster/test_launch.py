"""The plan of a run: what is submitted, with which dependencies, and what `status` says."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import safetensors.torch
import torch
import xxhash
from PIL import Image
from slurm import Slurm, until

from cmdist.errors import ConfigError
from cmdist.nets.classifier import Classifier
from cmdist.tracking import mlflow as tracking
from ranks import REPOSITORY
from runs import make_data, make_run
from training import OBJECTIVES, SMALL, write_config

sys.path.insert(0, str(REPOSITORY / "cluster"))
import launch

CONFIG = str(REPOSITORY / "configs" / "lsun_bedroom256" / "cd.yaml")


def test_a_dry_run_prints_the_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", lambda *a: pytest.fail("submitted"))
    launch.main([CONFIG, "run.root=/runs", "--nodes", "16", "--dry-run", "--n", "100", "--sbatch=--partition=gpu"])
    training, watching, evaluations = [
        shlex.split(line.partition("=$(")[2].rstrip(")")) for line in capsys.readouterr().out.splitlines()
    ]
    for command in (training, watching, evaluations):
        assert command[:4] == ["sbatch", "--parsable", "--comment=cmdist /runs/cd", "--partition=gpu"]
    assert (
        training[4] == "--nodes=16"
        and training[5].endswith("train_lsun.sbatch")
        and training[6:] == [CONFIG, "run.root=/runs"]
    )
    assert watching[4] == "--dependency=after:$TRAINING" and watching[-4:] == [
        "--watch=$TRAINING",
        "/runs/cd",
        "--n",
        "100",
    ]
    assert evaluations[4:7] == ["--dependency=afterok:$TRAINING", "--kill-on-invalid-dep=yes", "--array=0-5%2"]
    averages = ["0.9999432189950708", "0.99994", "0.9999"]
    assert evaluations[-7:] == ["--each", *(f"--ema {ema} --steps {n}" for ema in averages for n in (1, 2))]


def test_an_unknown_average_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--ema 0.5 is not in train.ema"):
        launch.main([CONFIG, "--ema", "0.5", "--dry-run"])


@pytest.mark.parametrize("wrong", ["--nodes 0", "--n -1", "--at-once 0", "--steps many", "--steps 0"])
def test_a_number_that_cannot_be_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong.split()[0]):
        launch.main([CONFIG, *wrong.split(), "--dry-run"])


def test_a_plan_that_slurm_refuses_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("sbatch", "[[ $* != *--array* ]] || { echo 'Invalid job array' >&2; exit 1; }\necho 7"),
        ("scancel", ""),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\necho {name} $* >> {tmp_path}/calls\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(launch.SlurmError, match="evaluations was not submitted: Invalid job array; job 7 is cancelled"):
        launch.main([CONFIG])
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "scancel 7"


def test_a_controller_that_hangs_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/bash\nexec sleep 60\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    with pytest.raises(launch.SlurmError, match="sbatch has not answered for 0.3 s: is Slurm's controller down?"):
        launch.main([CONFIG])


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
    leaks = {
        "SLURM_JOB_ID": "3",
        "SLURM_PROCID": "1",
        "RANK": "1",
        "WORLD_SIZE": "9",
        "LOCAL_RANK": "1",
        "MASTER_PORT": "1",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "OMPI_COMM_WORLD_SIZE": "9",
    }
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
        (tmp_path / name).write_text(
            f"#!/bin/bash\necho '{name}: error: no answer' >&2\necho '{name}: fatal: gave up' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        launch.SlurmError, match=r"^training was not submitted: sbatch: error: no answer; sbatch: fatal: gave up$"
    ):
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


def lsun_shards(folder: Path, extractor: bool) -> Path:
    """A database in LSUN's format, prepared as the README says; Inception's place as extractor is taken by a net that
    nobody trained.
    """
    draw, database = np.random.default_rng(0), lmdb.open(str(folder / "bedroom_train_lmdb"), map_size=2**26)
    with database.begin(write=True) as transaction:
        for _ in range(160):  # at least twice the extractor's 64 features
            small, file = Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8)), io.BytesIO()
            small.resize((300, 256)).save(file, "WEBP", quality=75)
            transaction.put(draw.bytes(20).hex().encode(), file.getvalue())
    database.close()
    out = folder / "data"
    command = [
        sys.executable,
        "pipelines/prepare_data.py",
        "lsun",
        str(folder / "bedroom_train_lmdb"),
        "--size",
        "8",
        "--per-shard",
        "40",
    ]
    done = subprocess.run([*command, "--out", str(out)], cwd=REPOSITORY, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    if extractor:
        torch.manual_seed(0)
        content = safetensors.torch.save(Classifier(3, 10).state_dict())
        (out / "extractor.safetensors").write_bytes(content)
        entry = {
            "file": "extractor.safetensors",
            "checksum": f"xxh3:{xxhash.xxh3_128_hexdigest(content)}",
            "accuracy": 0.1,
        }
        index = json.loads((out / "index.json").read_text())
        (out / "index.json").write_text(json.dumps(index | {"extractor": entry}))
    return out


def run_plan(slurm: Slurm, folder: Path, data: Path, uri: str, nodes: int, tasks: int) -> tuple[dict[str, str], str]:
    """launch.py from a folder that looks like the repository, until the queue is empty; the jobs' numbers and all
    logs.
    """
    for name in ("cluster", "pipelines", "configs", "cmdist"):
        (folder / name).symlink_to(REPOSITORY / name)
    text = SMALL.replace("uri: none", f"uri: '{uri}', experiment: plan").replace(
        "channels: 1, classes: 10", "channels: 3"
    )
    config = write_config(folder, str(data), text)
    size = f"--gpus-per-node=0 --cpus-per-task=1 --ntasks-per-node={tasks}"
    said = slurm.call(
        sys.executable, "cluster/launch.py", config, "--script", "cluster/train_lsun.sbatch", "--nodes", str(nodes),
        *OBJECTIVES["ct"],
        "--n", "128", "--ema", "0.99", f"--sbatch={size}", cwd=folder, PYTHON=sys.executable, POLL="2",
    )  # fmt: skip
    jobs = dict(re.findall(r"^(\w+) +job (\d+)$", said, re.M))
    assert list(jobs) == ["training", "watching", "evaluations"], said
    until(lambda: not slurm.call("squeue", "--noheader").strip(), 500, lambda: slurm.call("squeue"))
    return jobs, "\n".join(path.read_text() for path in [*folder.glob("*.log"), *folder.glob("logs/*/*.log")])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_plan_runs_to_its_end(slurm: Slurm, tmp_path: Path) -> None:
    """LSUN-format data, training on 2 nodes of 2 ranks, an evaluation job beside it and an array after it, all in one
    MLflow run.
    """
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    jobs, logs = run_plan(slurm, tmp_path, lsun_shards(tmp_path, extractor=True), uri, nodes=2, tasks=2)
    for job in jobs.values():
        states = re.findall(r"JobState=(\S+)", slurm.call("scontrol", "-o", "show", "job", job))
        assert states and set(states) == {"COMPLETED"}, logs
    assert "preflight: 4 ranks on cpu, step 0 of 20 is committed" in logs and "4 ranks on node1 node2" in logs
    figures = sorted(path.name.split("-")[1:3] for path in (tmp_path / "runs" / "small" / "evaluations").glob("*.json"))
    # the watching job: one and two steps with the first average of both committed steps; the array: those of the other
    # one, of the last
    assert len(figures) == 6, logs
    noted = tracking.runs(uri, "plan")
    parents = [run for run in noted if run["parent"] is None]
    assert (
        len(parents) == 1
        and {run["parent"] for run in noted if run["parent"]} == {parents[0]["id"]}
        and len(noted) == 7
    )
    shown = slurm.call(sys.executable, "cluster/launch.py", "status", str(tmp_path / "runs" / "small"), cwd=tmp_path)
    assert (
        "step         20 of 20 is committed" in shown
        and "steps/s" in shown
        and "at step 20, EMA 0.99, 128 images" in shown
    )
    print(shown)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failing_evaluation_never_touches_training(slurm: Slurm, tmp_path: Path) -> None:
    """The data has no extractor and there are no weights of Inception, so that no checkpoint can be evaluated."""
    jobs, logs = run_plan(slurm, tmp_path, lsun_shards(tmp_path, extractor=False), "none", nodes=1, tasks=1)
    shown = {name: slurm.call("scontrol", "-o", "show", "job", job) for name, job in jobs.items()}
    assert "JobState=COMPLETED" in shown["training"] and "Restarts=0" in shown["training"], logs
    assert "JobState=FAILED" in shown["watching"] and set(re.findall(r"JobState=(\S+)", shown["evaluations"])) == {
        "FAILED"
    }, logs
    assert f"no step of {tmp_path}/runs/small can be evaluated so" in logs and "fid needs Inception's weights" in logs
    assert not list((tmp_path / "runs" / "small" / "evaluations").glob("*.json"))
