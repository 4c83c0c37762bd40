"""The common part of the training scripts with stand-ins for Slurm's commands: when a job ends for good, what its log
says of the cause, and an srun that waits for a node that is gone.
"""

import os
import subprocess
from pathlib import Path

import pytest

from ranks import REPOSITORY

SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo node1 ;;
    --oneliner) echo "JobId=1 JobState=RUNNING Restarts=$SLURM_RESTART_COUNT x" ;;
    requeue) echo "requeued by scontrol" ;;
esac
"""


def job(folder: Path, srun: str, start: int = 0, **variables: str) -> tuple[int, str]:
    """Exit code and log of one start of a job whose srun is that script."""
    for name, text in (("srun", f"#!/usr/bin/env bash\n{srun}\n"), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    script = (REPOSITORY / "cluster" / "train.bash").read_text()
    (folder / "job.bash").write_text("PYTHON=python\n" + script)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "test", "SLURM_JOB_NODELIST": "node1", "SLURM_NTASKS": "1"}
    environment = os.environ | slurm | {"SLURM_RESTART_COUNT": str(start), "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "job.bash"], cwd=folder, env=environment | variables, text=True, capture_output=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("code", [1, 3])
def test_a_preflight_that_fails_is_not_started_for_ever(tmp_path: Path, code: int) -> None:
    """As with a mistyped endpoint of a store, which looks like one that is down."""
    for start in range(2):
        found, log = job(tmp_path, f"exit {code}", start, MAX_RESTARTS="2")
        assert (found, "requeued by scontrol" in log) == (code, True), log
    found, log = job(tmp_path, f"exit {code}", 2, MAX_RESTARTS="2")
    assert found == 2 and "requeued by scontrol" not in log
    assert "2 restarts in a row have not come through pre-flight" in log


def test_a_preflight_that_comes_through_counts_anew(tmp_path: Path) -> None:
    for start, script in enumerate(("exit 1", "exit 1", "[[ $* == *preflight* ]] || exit 1", "exit 1", "exit 1")):
        found, log = job(tmp_path, script, start, MAX_RESTARTS="2")
        assert found == 1 and "requeued by scontrol" in log, log


def test_a_run_that_another_job_trains_is_left_to_it(tmp_path: Path) -> None:
    found, log = job(tmp_path, "exit 4")
    assert found == 4 and "pre-flight ended with exit code 4: not started again" in log and "requeued" not in log


def test_the_log_names_the_first_cause(tmp_path: Path) -> None:
    srun = """if [[ $* == *preflight* ]]; then exit 0; fi
echo "rank 3 on node2: the extractor is damaged" >"$CMDIST_FAILURE"
exit 1"""
    found, log = job(tmp_path, srun)
    assert found == 1
    assert "training, the first to fail: rank 3 on node2: the extractor is damaged" in log
    found, log = job(tmp_path, "[[ $* == *preflight* ]]", 1)
    assert "extractor" not in log, "that of the start before"


def test_an_srun_that_waits_for_a_lost_node_is_ended(tmp_path: Path) -> None:
    """It ignores all but SIGKILL here; nothing is done to one whose ranks have not failed."""
    srun = """if [[ $* == *preflight* ]]; then exit 0; fi
trap '' TERM USR1
[[ -z $FAILS ]] || echo "rank 0 on node1: connection closed" >"$CMDIST_FAILURE"
for _ in {1..%d}; do sleep 0.1; done
exit 7"""
    found, log = job(tmp_path, srun % 600, LOST="1", FAILS="yes")
    assert found == 137 and "srun has not ended within 1 s: a node does not answer" in log and "requeued" in log
    found, log = job(tmp_path, srun % 80, 1, LOST="1", FAILS="")
    assert found == 7 and "does not answer" not in log
