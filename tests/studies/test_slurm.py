"""What a study submits, told to a stand-in for sbatch."""

import os
from pathlib import Path

import pytest

from ranks import REPOSITORY, pipeline
from runs import call, make_data
from studies.small import write

SBATCH = """#!/usr/bin/env bash
number=$(find "$FOLDER" -name 'submitted-*' | wc -l)
printf '%s\\n' "$PWD" "$@" >"$FOLDER/submitted-$number"
echo "$((100 + number));cluster"
"""
STUDY = pipeline("study")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the repository with a study, in its `root` the data, and an sbatch."""
    make_data(tmp_path / "root/data/digits")
    (tmp_path / "root/data/digits/references-x.json").touch()
    write(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submitted(folder: Path) -> list[list[str]]:
    """The working folder and the arguments of each sbatch."""
    return [path.read_text().splitlines() for path in sorted(folder.glob("submitted-*"))]


def test_jobs_are_told_absolute_paths(elsewhere: Path) -> None:
    call(STUDY.main, "small.yaml", "--root", "./root", "--out", "pages", "--slurm", "--sbatch=--gpus-per-node=0")
    start = [str(REPOSITORY), "--parsable", "--gpus-per-node=0"]
    paths = [f"{elsewhere}/small.yaml", "--root", f"{elsewhere}/root", "--out", f"{elsewhere}/pages"]
    script = ["cluster/study.sbatch", *paths]
    assert submitted(elsewhere) == [
        [*start, "--array=0,1", *script, "--task"],
        [*start, "--dependency=afterany:100", "--array=2,3,4,5", *script, "--task"],
        [*start, "--dependency=afterany:101", *script, "--page"],
    ]


def test_tasks_have_the_seeds_that_are_given(elsewhere: Path) -> None:
    """A task is a number of the grid, which is another one with other seeds."""
    call(STUDY.main, "small.yaml", "--root", "root", "--seeds", 7, 8, 9, "--slurm")
    first, *_, page = submitted(elsewhere)
    assert first[-5:] == ["--seeds", "7", "8", "9", "--task"] and "--array=0,1,2" in first
    assert page[-5:] == ["--seeds", "7", "8", "9", "--page"]


def test_urls_stay_as_they_are(elsewhere: Path) -> None:
    call(STUDY.main, "small.yaml", "--root", "root", "--out", "s3://bucket/pages", "--slurm")
    assert {command[-2] for command in submitted(elsewhere)} == {"s3://bucket/pages"}
