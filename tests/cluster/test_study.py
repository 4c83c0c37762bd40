"""A study's array on a real Slurm of one node: a lost task is made by the same command, and nothing else is."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm import Slurm, missing, until

from cmdist.report import tables
from cmdist.studies import grid
from cmdist.studies.grid import Cell
from ranks import REPOSITORY
from studies.small import STUDY, write

TEXT = (
    STUDY.replace(", l2: {objective.distance: {kind: l2}}", "")
    .replace(", times: {'3': [80.0, 2.0, 0.5]}", "")
    .replace("{train.steps: 4}, measure", "{train.steps: 60}, measure")
)
COMMAND = [sys.executable, "-W", "ignore", str(REPOSITORY / "pipelines/study.py"), "small.yaml"]


@pytest.fixture
def node() -> Iterator[Slurm]:
    """A cluster of one node, on which two tasks fit."""
    if why := missing():
        pytest.skip(why)
    cluster = Slurm(1)
    yield cluster
    cluster.stop()


def submit(node: Slurm, folder: Path) -> list[tuple[str, str]]:
    """Array, or `page`, and job of what is submitted there for the study of its file small.yaml."""
    options = f"--gpus-per-node=0 --cpus-per-task=4 --output={folder}/%A_%a.log"
    command = [*COMMAND, "--root", "root", "--out", "pages", "--slurm", f"--sbatch={options}"]
    said = node.call(*command, cwd=folder, PYTHON=sys.executable)
    return re.findall(r"^(generation \d   \d+ runs?|page) +job (\d+)$", said, re.MULTILINE)


def until_over(node: Slurm, folder: Path) -> None:
    """Wait until the queue is empty."""
    until(lambda: not node.call("squeue", "-h").strip(), 400, lambda: logs(folder))


def state(node: Slurm, job: str) -> str:
    """JobState of a job, or of a task of an array."""
    found = re.search(r"JobState=(\S+)", node.call("scontrol", "-o", "show", "job", job))
    assert found, job
    return found[1]


def logs(folder: Path) -> str:
    """What the tasks said, and the commands that they ran."""
    paths = sorted([*folder.glob("*.log"), *folder.glob("root/logs/*.log")])
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in paths)


def figures(cells: list[Cell]) -> dict[tuple[str, int, str], float]:
    """Each measured figure, all digits of it."""
    return {(cell.title, row["step"], row["sampler"]): row["value"] for cell in cells for row in cell.figures()}


def rows(pages: Path, table: str) -> list[dict[str, str]]:
    """A table without its columns of times."""
    return [
        {key: value for key, value in row.items() if "seconds" not in key}
        for row in tables.read(str(pages / "small"), table)
    ]


def touched(root: Path, cells: list[Cell]) -> dict[Path, int]:
    """When each file of these runs, and of what their commands said, was written last."""
    found = [path for cell in cells for path in Path(cell.url).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in [*found, *(root / f"logs/{cell.name}.log" for cell in cells)]}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_lost_task_is_made_by_the_same_command_and_nothing_else(node: Slurm, tmp_path: Path) -> None:
    write(tmp_path, TEXT)
    whole = subprocess.run(
        [*COMMAND, "--root", "whole", "--out", "whole/pages"], cwd=tmp_path, text=True, stdout=-1, stderr=-2
    )
    assert whole.returncode == 0, whole.stdout
    (tmp_path / "root").mkdir()
    (tmp_path / "root/data").symlink_to(tmp_path / "whole/data")
    study = grid.load(str(tmp_path / "small.yaml"))
    expected, cells = (grid.cells(study, str(tmp_path / name)) for name in ("whole", "root"))
    assert [cell.title for cell in cells] == [
        f"{name} seed={seed}" for name in ("teacher", "cd distance=l1") for seed in (1, 2)
    ]

    (first, teachers), (second, students), (page, last) = submit(node, tmp_path)
    assert (first, second, page) == ("generation 0   2 runs", "generation 1   2 runs", "page")
    lost, kept = cells[::2], cells[1::2]
    log = tmp_path / f"root/logs/{lost[0].name}.log"
    until(lambda: log.exists() and "step/s" in log.read_text(), 120, lambda: logs(tmp_path))
    node.call("scancel", f"{teachers}_0")
    until_over(node, tmp_path)
    assert state(node, f"{teachers}_0") == "CANCELLED" and not lost[0].trained(), logs(tmp_path)
    assert state(node, f"{teachers}_1") == state(node, f"{students}_3") == "COMPLETED", logs(tmp_path)
    assert state(node, f"{students}_2") == "FAILED"
    assert "cd distance=l1 seed=1 follows teacher seed=1, which is not trained to its end" in logs(tmp_path)
    assert state(node, last) == "COMPLETED"
    assert "2 of 4 runs are missing, first teacher seed=1" in logs(tmp_path)
    assert {row["seed"] for row in rows(tmp_path / "pages", "figures")} == {"2"}

    before = touched(tmp_path / "root", kept)
    assert [submitted for submitted, _ in submit(node, tmp_path)] == [
        "generation 0   1 run",
        "generation 1   1 run",
        "page",
    ]
    until_over(node, tmp_path)
    assert not any(cell.missing() for cell in cells), logs(tmp_path)
    assert touched(tmp_path / "root", kept) == before
    assert figures(cells) == figures(expected)
    for table in ("figures", "medians"):
        assert rows(tmp_path / "pages", table) == rows(tmp_path / "whole/pages", table)
