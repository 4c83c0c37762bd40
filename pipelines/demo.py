"""The whole system on real digits: shards, teachers, students under DeepSpeed, evaluations, comparison.

configs/studies/demo.yaml says what is trained; what is there is reused.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cmdist.errors import CmdistError
from cmdist.studies import grid
from cmdist.studies.running import REPOSITORY
from cmdist.system import cli, jobs
from cmdist.system.texts import counted

STUDY = "configs/studies/demo.yaml"


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/digits", help="the folder for the data, the runs and MLflow's database")
    parser.add_argument("--seed", type=int, help="another one than the study's")
    options = parser.parse_args(arguments)
    begin, root = time.monotonic(), Path(options.root).absolute()
    seeds = [] if options.seed is None else ["--seeds", str(options.seed)]
    run("study.py", STUDY, "--root", str(root), "--out", f"{root}/pages", *seeds)
    measured = [name for name, group in grid.load(str(REPOSITORY / STUDY)).groups.items() if group.measure.steps != ()]
    run("compare.py", *(f"{root}/{name}" for name in measured))
    cards = torch.cuda.device_count()
    places = counted(cards, "GPU") if cards else counted(os.cpu_count() or 1, "CPU core")
    print(f"\nwhole demo   {time.monotonic() - begin:.0f} s on {places}")
    print(f"report       {root}/comparison/report.html")
    print(f"browse       {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri sqlite:///{root}/mlflow.db")


def run(pipeline: str, *arguments: str) -> None:
    """A pipeline as its user would run it, which is told of a request to end; Ctrl-C reaches it by the terminal. Raises
    CmdistError if it fails, which has said why.
    """
    process = subprocess.Popen([sys.executable, f"pipelines/{pipeline}", *arguments], cwd=REPOSITORY)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    try:
        while (code := process.poll()) is None:
            time.sleep(jobs.PERIOD)  # a signal may come to another thread than the one that would wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise CmdistError(f"{pipeline} ended with {code}; `make demo` goes on from there")


if __name__ == "__main__":
    cli.run(main)
