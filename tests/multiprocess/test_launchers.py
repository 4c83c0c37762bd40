"""The launch forms that users type, as they type them: the deepspeed launcher, torchrun and plain python."""

import os
import subprocess
import sys
from pathlib import Path

from ranks import REPOSITORY, free_port
from training import committed, files, write_config

BIN = Path(sys.executable).parent


def launch(*command: str) -> str:
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_all_launch_forms_train_the_same(tmp_path: Path, digits: str) -> None:
    config, script, port = write_config(tmp_path, digits), "pipelines/train.py", str(free_port())
    launch("deepspeed", "--num_gpus", "2", "--master_port", port, script, config, "run.name=deepspeed", "train.steps=4")
    launch(
        "torchrun",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        script,
        config,
        "run.name=torchrun",
        "train.steps=4",
    )
    launch("python", script, config, "run.name=python", "train.steps=4")
    runs = tmp_path / "runs"
    assert committed(runs / "python", 4)
    assert files(runs / "deepspeed", 4) == files(runs / "torchrun", 4)


def test_a_failure_comes_through_the_launcher(tmp_path: Path, digits: str) -> None:
    result = subprocess.run(
        [
            str(BIN / "torchrun"),
            "--nproc_per_node",
            "2",
            "--master_port",
            str(free_port()),
            "pipelines/train.py",
            "nowhere.yaml",
        ],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "error: config nowhere.yaml: No such file or directory" in result.stderr
