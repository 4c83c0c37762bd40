"""The whole system on real digits: shards, teacher, CD and CT under DeepSpeed, evaluation jobs, comparison; what is there is reused."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cmdist import cli, storage
from cmdist import config as configuration
from cmdist.distributed import free_port
from cmdist.errors import CmdistError
from cmdist.train import checkpoint as checkpoints

RUNS = ("edm", "cd", "ct", "ict")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="runs/digits", help="the folder for the data, the runs and MLflow's database")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    repository, begin = Path(__file__).resolve().parents[1], time.monotonic()
    ranks = torch.cuda.device_count() or min(2, os.cpu_count() or 1)
    python, launcher = sys.executable, str(Path(sys.executable).with_name("deepspeed"))
    root, data = options.root, f"{options.root}/data"

    def run(title: str, *command: str) -> None:
        print(f"\n== {title}\n$ {shlex.join(command)}", flush=True)
        environment = os.environ | {
            "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        result = subprocess.run(command, cwd=repository, env=environment)
        if result.returncode:
            raise CmdistError(f"the demo stopped at '{title}', which ended with {result.returncode}; `make demo` goes on from there")

    if not storage.exists(f"{data}/index.json"):
        run("digits -> shards", python, "pipelines/prepare_data.py", "digits", "--out", data)
    folders = []
    for name in RUNS:
        path = repository / "configs" / "digits" / f"{name}.yaml"
        overrides = [f"run.root={root}", f"data.url={data}", f"run.seed={options.seed}"]
        if name == "cd":
            overrides.append(f"teacher={root}/edm")
        config = configuration.load(path, overrides)
        folder = f"{root}/{name}"
        folders.append(folder)
        if config.train.steps not in checkpoints.steps(folder):
            launch = [launcher, "--num_gpus", str(ranks), "--master_port", str(free_port())]
            run(f"train {name}: {config.objective}", *launch, "pipelines/train.py", str(path.relative_to(repository)), *overrides)
        run(f"evaluate {name}", python, "pipelines/evaluate.py", folder)
    run("compare", python, "pipelines/compare.py", *folders)
    print(f"\nwhole demo: {time.monotonic() - begin:.0f} s on {ranks} {'GPU' if torch.cuda.is_available() else 'CPU'} ranks")
    print(f"browse the runs: {Path(python).with_name('mlflow')} ui --backend-store-uri sqlite:///{Path(root).absolute()}/mlflow.db")


if __name__ == "__main__":
    cli.run(main)
