"""A study is made, goes on after kills, and is told of."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmdist.errors import CmdistError
from cmdist.report import tables
from cmdist.studies import grid
from cmdist.system import jobs
from cmdist.system.jobs import Job, Place
from studies.small import STUDY, write

COMMAND = [sys.executable, "-W", "ignore", "pipelines/study.py"]


def study(file: str, root: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [*COMMAND, file, "--root", str(root), "--out", str(root / "pages"), *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def told(root: Path) -> int:
    """Bytes that a study's commands have said."""
    return sum(log.stat().st_size for log in root.glob("logs/*.log"))


def test_jobs_run_after_those_that_they_need_and_failures_stop_only_what_follows() -> None:
    begun: list[str] = []
    told: list[tuple[str, str | None]] = []

    def work(name: str, place: Place) -> None:
        begun.append(name)
        if name == "b":
            raise CmdistError("b is broken")

    needs: dict[str, tuple[str, ...]] = {"a": (), "b": (), "c": ("a",), "d": ("b",), "e": ("d", "c")}
    work_of = [Job(name, need, lambda place, name=name: work(name, place)) for name, need in needs.items()]  # type: ignore[misc]
    failed = jobs.run(work_of, 2, lambda name, error: told.append((name, error and str(error))))
    assert sorted(failed) == ["b", "d", "e"] and sorted(begun) == ["a", "b", "c"]
    assert sorted(told, key=str) == [("a", None), ("b", "b is broken"), ("c", None)]


def test_an_exception_ends_the_commands_of_all_places(tmp_path: Path) -> None:
    def sleep(place: Place) -> None:
        place.run([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", {}, tmp_path)

    def stop(name: str, error: BaseException | None) -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        jobs.run([Job("long", (), sleep), Job("short", (), lambda place: None)], 2, stop)
    assert time.monotonic() - begin < 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_moments_it_ends_with_the_same_table_and_nothing_is_made_twice(tmp_path: Path) -> None:
    file, draw = write(tmp_path, STUDY.replace("[1, 2]", "[1, 2, 3, 4]")), random.Random(0)
    whole = study(file, tmp_path / "whole")
    assert whole.wait(900) == 0, whole.communicate()[0]
    kills = 0
    while kills < 10:
        before, again = told(tmp_path / "killed"), study(file, tmp_path / "killed")
        while again.poll() is None and told(tmp_path / "killed") == before:
            time.sleep(0.05)
        try:  # moments after the first word of a command of its own, however fast this machine is
            again.wait(draw.uniform(0, 5))
            break
        except subprocess.TimeoutExpired:
            again.send_signal(draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
            again.wait(300)
            kills += 1
    assert kills >= 5, kills
    first, second = study(file, tmp_path / "killed"), study(file, tmp_path / "killed")  # two at once
    assert [first.wait(900), second.wait(900)] == [0, 0], first.communicate()[0] + second.communicate()[0]
    place = "value", "sampler", "step", "group", "distance", "seed", "run"
    rows = [
        sorted(tuple(row[key] for key in place) for row in tables.read(str(tmp_path / name / "pages/small"), "figures"))
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 4 * (1 + 2 * 2 * 3)
    for cell in grid.cells(grid.load(file), str(tmp_path / "killed")):
        assert len(list((Path(cell.url) / "evaluations").glob("*.json"))) == len(cell.steps) * len(cell.samplers(4))
    report = (tmp_path / "whole/reports/small.html").read_text()
    assert report.count("data:image/png;base64,") == 3 and "http" not in re.sub(r"data:[^\"]*", "", report)
    page = (tmp_path / "whole/pages/small.md").read_text()
    assert "{{" not in page and "| CD |" not in page and "| cd | l1 |" in page
    assert (tmp_path / "whole/pages/small/figure-dark.svg").stat().st_size > 10_000
    third = study(
        write(tmp_path, Path(file).read_text().replace("title: A", "title: The"), "other"), tmp_path / "whole"
    )
    said = third.communicate(timeout=300)[0]
    assert third.returncode == 0 and "12 runs, 12 there" in said
    wrong = study(
        write(tmp_path, Path(file).read_text().replace("cd distance=l1 1", "cd 1"), "wrong"),
        tmp_path / "whole",
        "--page",
    )
    said = wrong.communicate(timeout=300)[0]
    assert wrong.returncode == 2 and "the page names 'cd 1', of which the study has 2 figures" in said


@pytest.mark.slow
def test_a_task_that_is_terminated_commits_its_step(tmp_path: Path) -> None:
    """As the script of an array does where time is nearly over."""
    text = STUDY.replace(
        "train.steps: 4}, measure: {n: 128}", "train.steps: 40000, train.checkpoint_every: 40000}, measure: {n: 128}"
    )
    task = study(write(tmp_path, text), tmp_path, "--task", "0")
    deadline = time.monotonic() + 120
    while not any("step/s" in log.read_text() for log in tmp_path.glob("logs/denoising-*.log")):
        assert time.monotonic() < deadline and task.poll() is None
        time.sleep(0.2)
    task.send_signal(signal.SIGTERM)
    assert task.wait(60) == 130
    (log,) = tmp_path.glob("logs/denoising-*.log")
    assert "stopped by SIGTERM after step" in log.read_text()
    assert list(tmp_path.glob("runs/denoising-*/checkpoints/step-*/COMMIT"))
