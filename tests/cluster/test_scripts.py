"""The batch scripts: accepted by a controller of 64 nodes with 8 GPUs each, clean, and without directives that Slurm
would not read.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm import Slurm, missing

from ranks import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "cluster").glob("*.sbatch"))
SHELL = [*SCRIPTS, *sorted((REPOSITORY / "cluster").glob("*.bash"))]
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
LARGE = """NodeName=node[1-64] CPUs=192 RealMemory=2000000 Gres=gpu:8 State=CLOUD
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=-1"""


@pytest.fixture(scope="module")
def controller() -> Iterator[Slurm]:
    why = missing()
    if why:
        pytest.skip(why)
    slurm = Slurm(0, cloud=LARGE)
    yield slurm
    slurm.stop()


def late_directives(text: str) -> list[str]:
    """`#SBATCH` lines after the first command, and lines that look like one and are none: Slurm ignores both without a
    word.
    """
    wrong, commands = [], False
    for line in text.splitlines():
        if (line.startswith("#SBATCH") and commands) or re.match(r"#\s+SBATCH|\s+#SBATCH", line):
            wrong.append(line)
        commands = commands or bool(line.strip() and not line.startswith("#"))
    return wrong


def test_the_lint_sees_late_directives() -> None:
    assert late_directives("#!/bin/bash\n#SBATCH --a\n\n# SBATCH --b\nset -e\n#SBATCH --c\n") == [
        "# SBATCH --b",
        "#SBATCH --c",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_directives_come_first(script: Path) -> None:
    assert late_directives(script.read_text()) == []
    assert "#SBATCH --open-mode=append" in script.read_text() and "#SBATCH --requeue" in script.read_text()


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_bash_and_shellcheck_accept_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if SHELLCHECK is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run([SHELLCHECK, "-x", str(script)], cwd=REPOSITORY, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_large_cluster_accepts_it(controller: Slurm, script: Path) -> None:
    assert "to start at" in controller.call("sbatch", "--test-only", str(script))


def test_a_large_cluster_refuses_what_it_has_not(controller: Slurm) -> None:
    script = str(REPOSITORY / "cluster" / "train_lsun.sbatch")
    assert "not available" in controller.call("sbatch", "--test-only", "--gpus-per-node=9", script, check=False)
