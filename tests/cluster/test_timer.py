"""The common part of the batch scripts with stand-ins for Slurm's commands: what a repeated USR1 leaves behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ranks import REPOSITORY

SRUN = """#!/usr/bin/env bash
if [[ $* == *preflight* ]]; then exit 0; fi
trap 'sleep 0.5; exit 75' USR1  # the ranks finish their step
echo training
for _ in {1..600}; do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo node1 ;;
    --oneliner) echo "JobId=1 JobState=RUNNING Restarts=0 x" ;;
    requeue) echo "requeued by scontrol" ;;
esac
"""


@pytest.mark.parametrize("signals", [1, 3])
def test_repeated_usr1_leaves_no_timer_behind(tmp_path: Path, signals: int) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = (REPOSITORY / "cluster" / "train.bash").read_text()
    assert "GRACE=150" in script
    (tmp_path / "job.bash").write_text("PYTHON=python\n" + script.replace("GRACE=150", "GRACE=2"))
    variables = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "test", "SLURM_JOB_NODELIST": "node1", "SLURM_NTASKS": "1"}
    environment = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        job = subprocess.Popen(["bash", "job.bash"], cwd=tmp_path, env=environment, stdout=output, stderr=output)
    deadline = time.monotonic() + 30
    while "training" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(signals):
        job.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert job.wait(30) == 75
    said = log.read_text()
    assert said.count("USR1: the ranks finish") == signals and "training ended with exit code 75 after USR1" in said
    time.sleep(3)
    assert log.read_text() == said, "a timer outlived the start"
    assert said.count("requeued by scontrol") == 1
    left = subprocess.run(["pgrep", "-f", "^sleep 2$"], capture_output=True, text=True).stdout.split()
    own = [
        pid for pid in left if Path(f"/proc/{pid}/cwd").exists() and os.readlink(f"/proc/{pid}/cwd") == str(tmp_path)
    ]
    assert own == []
