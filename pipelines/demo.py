"""The whole system on real digits: shards, teacher, CD and CT under DeepSpeed, evaluation jobs, comparison;
what is there is reused.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cmdist import config as configuration
from cmdist.checkpoints import search
from cmdist.config import Config
from cmdist.errors import CmdistError
from cmdist.system import cli, storage
from cmdist.system.distributed import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
BINARIES = Path(sys.executable).parent
CUDA = torch.cuda.is_available()
ROUNDS = (("edm", "ct"), ("cd", "ict"))  # cd and ict start from edm
# one thread for each rank: threads that spin for work make two processes on two cores several times slower
THREADS = {
    "DS_ACCELERATOR": "cuda" if CUDA else "cpu",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}

Job = tuple[str, list[str]]  # name, command


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--root", default="runs/digits", help="the folder for the data, the runs and MLflow's database")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    root, data, python = Path(options.root).absolute(), f"{options.root}/data", sys.executable
    if not storage.exists(f"{data}/index.json"):
        run(root, "digits -> shards", [("data", [python, "pipelines/prepare_data.py", "digits", "--out", data])])
    if not any(name.startswith("references-") for name in storage.names(data)):
        run(root, "references", [("references", [python, "pipelines/evaluate.py", "reference", data])])
    for names in ROUNDS:
        jobs = [job for name in names if (job := training(options.root, options.seed, name))]
        start_side_by_side(root, "train", jobs)
        if "edm" in names and missing_figures(options.root, options.seed, "edm"):  # its many steps are worth all ranks
            torchrun = [
                str(BINARIES / "torchrun"),
                "--nproc_per_node",
                str(devices()),
                "--master_port",
                str(free_port()),
            ]
            run(root, "evaluate", [("edm", [*torchrun, "pipelines/evaluate.py", f"{options.root}/edm"])])
    waiting = [name for name in ("ct", "cd", "ict") if missing_figures(options.root, options.seed, name)]
    start_side_by_side(
        root, "evaluate", [(name, [python, "pipelines/evaluate.py", f"{options.root}/{name}"]) for name in waiting]
    )
    run(
        root,
        "compare",
        [
            (
                "compare",
                [python, "pipelines/compare.py", *(f"{options.root}/{name}" for name in ("edm", "cd", "ct", "ict"))],
            )
        ],
    )
    print(f"\nwhole demo   {time.monotonic() - begin:.0f} s on {devices()} {'GPUs' if CUDA else 'CPU cores'}")
    print(f"report       {root}/comparison/report.html")
    print(f"browse       {BINARIES / 'mlflow'} ui --backend-store-uri sqlite:///{root}/mlflow.db")


def devices() -> int:
    """GPUs, or two CPU cores."""
    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)


def configured(root: str, seed: int, name: str) -> tuple[str, list[str], Config]:
    """A run's configuration file, the overrides that the demo gives it, and the result."""
    path = f"configs/digits/{name}.yaml"
    overrides = [f"run.root={root}", f"data.url={root}/data", f"run.seed={seed}"]
    overrides += {"cd": [f"objective.teacher={root}/edm"], "ict": [f"init={root}/edm"]}.get(name, [])
    return path, overrides, configuration.load(REPOSITORY / path, overrides)


def training(root: str, seed: int, name: str) -> Job | None:
    """The command that trains a run, unless its last step is committed."""
    path, overrides, config = configured(root, seed, name)
    if config.train.steps in search.steps(f"{root}/{name}"):
        return None
    # on CPU cores jobs run side by side on one rank each: two small ranks would mostly wait for each other
    ranks = max(r for r in range(1, devices() + 1) if config.micro_batches % r == 0) if CUDA else 1
    launcher = [str(BINARIES / "deepspeed"), "--quiet", "--num_gpus", str(ranks), "--master_port", str(free_port())]
    return name, [*launcher, "pipelines/train.py", path, *overrides]


def missing_figures(root: str, seed: int, name: str) -> bool:
    """Whether the last step lacks a figure of an evaluation; a glance's few images are none."""
    config, folder = configured(root, seed, name)[2], f"{root}/{name}/evaluations"
    files = [
        f for f in storage.names(folder) if f.startswith(f"step-{config.train.steps:010d}-") and f.endswith(".json")
    ]
    records = [json.loads(storage.read(f"{folder}/{f}")) for f in files]
    full = [record for record in records if record["protocol"]["n"] > config.train.glance_images]
    return len(full) < len(config.usual_steps())


def start_side_by_side(root: Path, what: str, jobs: Sequence[Job]) -> None:
    """Two at a time on CPU cores, one after the other on GPUs."""
    width = 1 if CUDA else devices()
    for first in range(0, len(jobs), width):
        run(root, what, jobs[first : first + width])


def run(root: Path, what: str, jobs: Sequence[Job]) -> None:
    """Run commands at the same time: the first one's output here, the others' in log files.
    Raises CmdistError if one fails.
    """
    environment = THREADS | dict(os.environ) | {"PATH": f"{BINARIES}:{os.environ['PATH']}"}
    root.mkdir(parents=True, exist_ok=True)
    processes = []
    for i, (name, command) in enumerate(jobs):
        log = root / f"{what}-{name}.log"
        title = what if what == name else f"{what} {name}"
        aside = f" (at the same time, output in {log})" if i else ""
        print(f"\n== {title}{aside}\n$ {shlex.join(command)}", flush=True)
        with log.open("wb") as file:
            output = {"stdout": file, "stderr": subprocess.STDOUT} if i else {}
            processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, **output))  # type: ignore[call-overload]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()  # only if we were interrupted: the runs commit their step and end
    for i, ((name, _), code) in enumerate(zip(jobs, codes, strict=True)):
        if i:
            print("\n".join((root / f"{what}-{name}.log").read_text().replace("\r", "\n").rstrip().splitlines()[-2:]))
        if code:
            raise CmdistError(
                f"the demo stopped at '{what} {name}', which ended with {code}; `make demo` goes on from there"
            )


if __name__ == "__main__":
    cli.run(main)
