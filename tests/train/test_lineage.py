"""Whether a folder is the run that its run.json names, or a copy of it."""

import shutil
from pathlib import Path

import pytest

from cmdist.checkpoints import sealed
from cmdist.checkpoints.attempt import Attempt, attempt_at
from cmdist.errors import CmdistError, RunInUse
from cmdist.system.distributed import World
from cmdist.train import lineage
from ranks import pipeline
from runs import call


def make(run: Path, **more: object) -> dict[str, object]:
    record = {"id": "first", "name": run.name, "tracking_uri": "none", "experiment": "tests", **more}
    sealed.write(f"{run}/run.json", sealed.seal(record))
    return record


def settled(run: Path) -> dict[str, object]:
    record = sealed.read(f"{run}/run.json")
    with attempt_at(str(run), World()) as attempt:
        return lineage.settle(record, str(run), attempt.number)


def test_at_its_place_it_is_the_same_run(tmp_path: Path) -> None:
    make(tmp_path / "a", url=str(tmp_path / "a"))
    assert settled(tmp_path / "a")["id"] == "first"


@pytest.mark.parametrize("original", ["stays", "goes"])
def test_at_another_place_it_is_a_new_run(tmp_path: Path, original: str) -> None:
    """Also if the original is gone: it may only be out of sight."""
    make(tmp_path / "a", url=str(tmp_path / "a"))
    (shutil.copytree if original == "stays" else shutil.move)(tmp_path / "a", tmp_path / "b")
    found = settled(tmp_path / "b")
    assert found["id"] != "first" and found["url"] == str(tmp_path / "b")
    assert found["origins"] == [{"id": "first", "url": str(tmp_path / "a")}]
    sealed.write(f"{tmp_path}/b/run.json", sealed.seal(found))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    again = settled(tmp_path / "c")
    assert lineage.ids(again) == (again["id"], found["id"], "first")
    assert settled(tmp_path / "b")["id"] == found["id"]


def test_the_same_folder_on_another_path_is_the_same_run(tmp_path: Path) -> None:
    make(tmp_path / "a", url=str(tmp_path / "a"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = settled(tmp_path / "link")
    assert (found["id"], found["url"]) == ("first", str(tmp_path / "a"))


def test_a_record_of_before_places_were_noted_goes_by_its_name(tmp_path: Path) -> None:
    make(tmp_path / "a")
    assert settled(tmp_path / "a") | {"url": ""} == make(tmp_path / "a") | {"url": ""}
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert settled(tmp_path / "b")["origins"] == [{"id": "first", "url": str(tmp_path / "a")}]


@pytest.mark.parametrize("by", ["the command", "other means"])
def test_a_folder_that_is_moved_and_said_to_be_stays_the_same_run(tmp_path: Path, by: str) -> None:
    main = pipeline("checkpoints").main
    make(tmp_path / "a", url=str(tmp_path / "a"))
    if by == "other means":
        shutil.move(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CmdistError, match=r"is not a run folder|was made at .*/a, not at"):
        call(main, "move", tmp_path / "nothing", tmp_path / "b")
    call(main, "move", tmp_path / "a", tmp_path / "b")
    assert settled(tmp_path / "b")["id"] == "first" and not (tmp_path / "a").exists()
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    with pytest.raises(CmdistError, match="are both there: one of them is a copy"):
        call(main, "move", tmp_path / "a", tmp_path / "b")


def test_a_folder_that_is_trained_in_is_not_moved(tmp_path: Path) -> None:
    make(tmp_path / "a", url=str(tmp_path / "a"))
    attempt = Attempt.take(str(tmp_path / "a"))
    with pytest.raises(RunInUse):
        call(pipeline("checkpoints").main, "move", tmp_path / "a", tmp_path / "b")
    attempt.end()
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()
