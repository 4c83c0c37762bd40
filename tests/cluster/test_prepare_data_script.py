"""The array script, run by bash as Slurm runs it: its variables set, and a stand-in for srun that drops srun's own
options.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmdist.data.preparing.shards import write_dataset
from cmdist.data.preparing.sources.files import folder

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "prepare_data.sbatch"


@pytest.mark.parametrize(
    "command", [["bash", "-n"], [shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"]]
)
def test_the_script_is_clean(command):
    done = subprocess.run([*command, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def submit(tmp_path, arguments, task=None):
    srun = tmp_path / "bin" / "srun"
    if not srun.exists():
        srun.parent.mkdir()
        srun.write_text('#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
        srun.chmod(0o755)
    array = (
        {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in {"ID": task, "COUNT": 2, "MIN": 1, "MAX": 2}.items()}
        if task
        else {}
    )
    environment = (
        os.environ
        | {"PATH": f"{srun.parent}:{os.environ['PATH']}", "PYTHON": sys.executable, "SLURM_CPUS_PER_TASK": "2"}
        | array
    )
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_array_and_the_last_step_make_the_data_set_of_one_job(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(40):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8, 3), np.uint8)).save(
            tmp_path / "in" / f"{i}.png"
        )
    arguments = ["folder", str(tmp_path / "in"), "--size", "8", "--per-shard", "9", "--format", "png", "--out"]
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    write_dataset(str(whole), folder(tmp_path / "in", size=8), per_shard=9)
    for job in [submit(tmp_path, [*arguments, str(parts)], task) for task in (1, 2)]:
        said = job.communicate()[0]
        assert job.returncode == 0, said
    last = submit(tmp_path, [*arguments, str(parts), "--finish"])
    assert "40 images of 8x8x3 in 5 shards, no labels" in last.communicate()[0] and last.returncode == 0
    names = [f"shard-{number:06d}.tar" for number in range(5)]
    assert sorted(p.name for p in parts.iterdir()) == ["index.json", "index.npz", *names]
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in ["index.npz", *names])


def test_what_one_process_does_is_not_told_how_many_to_take(tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / f"{i}.png")
    write_dataset(str(tmp_path / "out"), folder(tmp_path / "in"))
    (tmp_path / "out" / "index.json").unlink()
    job = submit(tmp_path, ["shards", str(tmp_path / "out")])
    assert "4 images of 8x8x3 in 1 shard, no labels" in job.communicate()[0] and job.returncode == 0


def test_without_arguments_it_says_how_to_use_it(tmp_path):
    job = submit(tmp_path, [])
    assert job.communicate()[0].startswith("usage: sbatch [--array=1-N]") and job.returncode == 2
