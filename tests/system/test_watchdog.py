"""A process in which nothing happens ends with its stacks and a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from cmdist.system.watchdog import Watchdog
def stuck():
    time.sleep(4)
with Watchdog(1.5, "train.hang_minutes") as dog:
    for _ in range(4):
        dog.feed()
        time.sleep(0.6)
    print("fed", flush=True)
    if "hang" in sys.argv:
        stuck()
stuck()
"""


@pytest.mark.parametrize("mode", ["hang", "stop"])
def test_what_is_stuck_ends_and_says_where(tmp_path: Path, mode: str) -> None:
    failure = tmp_path / "failure"
    environment = {"CMDIST_FAILURE": str(failure), "SLURM_PROCID": "3", "SLURMD_NODENAME": "node7"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], env=environment, text=True, capture_output=True)
    assert done.stdout == "fed\n"
    if mode == "stop":
        assert done.returncode == 0 and done.stderr == "" and not failure.exists()
        return
    says = "nothing has happened for 0.025 min (train.hang_minutes); where it is stuck:"
    assert done.returncode == 1 and f"error: {says}" in done.stderr and "in stuck" in done.stderr
    assert failure.read_text() == f"rank 3 on node7: {says}\n"
