"""The job that evaluates a run's checkpoints as they come, with stand-ins for Slurm's commands and for Python."""

import os
import subprocess
from pathlib import Path

from ranks import REPOSITORY

PYTHON = """#!/usr/bin/env bash
if [[ $1 == cluster/launch.py ]]; then cat steps 2>/dev/null; exit; fi
echo "evaluating $*"
echo "$*" >>calls
[[ ! -f fails ]] || exit "$(cat fails)"
"""


def watch(folder: Path, steps: str, fails: int = 0, *options: str) -> tuple[int, list[str], list[str]]:
    """Exit code, log, and calls of evaluate.py of a watching job that finds these steps."""
    (folder / "pipelines").mkdir(exist_ok=True)
    (folder / "pipelines" / "evaluate.py").touch()
    (folder / "steps").write_text(steps)
    (folder / "calls").write_text("")
    if fails:
        (folder / "fails").write_text(str(fails))
    stand_ins = {
        "python": PYTHON,
        "srun": '#!/usr/bin/env bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n',
        "scontrol": "#!/usr/bin/env bash\necho node1\n",
        "squeue": "#!/usr/bin/env bash\n",
    }
    for name, text in stand_ins.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1", "PYTHON": str(folder / "python"), "POLL": "0.1"}
    script = REPOSITORY / "cluster" / "evaluate.sbatch"
    done = subprocess.run(
        ["bash", str(script), "--watch=7", "RUN", *options], cwd=folder, text=True, capture_output=True, timeout=60,
        env=os.environ | slurm | {"PATH": f"{folder}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).splitlines(), (folder / "calls").read_text().splitlines()


def test_each_step_is_evaluated_once_until_the_run_is_finished(tmp_path: Path) -> None:
    code, _, calls = watch(tmp_path, "10\n20\nfinished\n", 0, "--n", "100")
    assert code == 0
    assert calls == [f"pipelines/evaluate.py RUN --n 100 --checkpoint {step}" for step in (10, 20)]


def test_what_no_step_can_be_asked_is_said_once(tmp_path: Path) -> None:
    """It said the same for each checkpoint before."""
    code, log, calls = watch(tmp_path, "10\n20\n30\nfinished\n", 2)
    assert code == 2 and len(calls) == 1
    assert log[-1] == "no step of RUN can be evaluated so: nothing more is tried"


def test_a_step_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    code, log, calls = watch(tmp_path, "10\n20\nfinished\n", 1)
    assert code == 1 and len(calls) == 2 and [line for line in log if line.startswith("step ")] == [
        f"step {step} of RUN could not be evaluated" for step in (10, 20)
    ]  # fmt: skip


def test_a_run_without_steps_is_said_once_and_waited_for_while_its_job_is_there(tmp_path: Path) -> None:
    code, log, calls = watch(tmp_path, "")
    assert code == 1 and not calls  # the queue has no job 7
    assert log == ["job 7 has left the queue and RUN is not finished: nothing more to wait for"]
