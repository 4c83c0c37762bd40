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
# one thread for each rank: threads that spin for work make two ranks on two cores several times slower
THREADS = {"DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="runs/digits", help="the folder for the data, the runs and MLflow's database")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    repository, begin = Path(__file__).resolve().parents[1], time.monotonic()
    devices = torch.cuda.device_count() or min(2, os.cpu_count() or 1)
    python, binaries = sys.executable, Path(sys.executable).parent
    root, data = options.root, f"{options.root}/data"

    def run(title: str, *command: str) -> None:
        print(f"\n== {title}\n$ {shlex.join(command)}", flush=True)
        environment = THREADS | dict(os.environ) | {"PATH": f"{binaries}:{os.environ['PATH']}"}
        result = subprocess.run(command, cwd=repository, env=environment)
        if result.returncode:
            raise CmdistError(f"the demo stopped at '{title}', which ended with {result.returncode}; `make demo` goes on from there")

    if not storage.exists(f"{data}/index.json"):
        run("digits -> shards", python, "pipelines/prepare_data.py", "digits", "--out", data)
    if not any(name.startswith("references-") for name in storage.names(data)):
        run("references: real images and a Gaussian", python, "pipelines/evaluate.py", "reference", data)
    folders = []
    for name in RUNS:
        path, folder = f"configs/digits/{name}.yaml", f"{root}/{name}"
        overrides = [f"run.root={root}", f"data.url={data}", f"run.seed={options.seed}"]
        overrides += {"cd": [f"teacher={root}/edm"], "ict": [f"init={root}/edm"]}.get(name, [])
        config = configuration.load(repository / path, overrides)
        ranks = max(r for r in range(1, devices + 1) if config.micro_batches % r == 0)
        folders.append(folder)
        if config.train.steps not in checkpoints.steps(folder):
            launcher = [str(binaries / "deepspeed"), "--quiet", "--num_gpus", str(ranks), "--master_port", str(free_port())]
            run(f"train {name}", *launcher, "pipelines/train.py", path, *overrides)
        newest = f"step-{config.train.steps:010d}-"
        if not any(figure.startswith(newest) and figure.endswith(".json") for figure in storage.names(f"{folder}/evaluations")):
            torchrun = [str(binaries / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
            # the many steps of a denoiser are worth a start on all ranks, two steps are not
            run(f"evaluate {name}", *(torchrun if name == "edm" else [python]), "pipelines/evaluate.py", folder)
    run("compare", python, "pipelines/compare.py", *folders)
    print(f"\nwhole demo   {time.monotonic() - begin:.0f} s on {devices} {'GPUs' if torch.cuda.is_available() else 'CPU ranks'}")
    print(f"samples      {Path(root).absolute()}/comparison/samples.png")
    print(f"browse       {binaries / 'mlflow'} ui --backend-store-uri sqlite:///{Path(root).absolute()}/mlflow.db")


if __name__ == "__main__":
    cli.run(main)
