"""A teacher that trains on between two starts of a distillation, and one that is thinned out, moved or lost."""

import json
import shutil
from pathlib import Path

import pytest

from cmdist import config, pins
from cmdist.checkpoints import record, retention, search
from cmdist.checkpoints.retention import Keep
from cmdist.errors import CheckpointError
from ranks import Ranks, pipeline, train
from runs import add_checkpoint, make_data, make_run
from training import CD, committed, files, write_config


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return make_run(tmp_path, "edm", make_data(tmp_path / "data", extractor=False), objective="denoising", step=10)


@pytest.fixture
def student(tmp_path: Path, teacher: Path) -> config.Config:
    data = tmp_path / "data"
    return config.load(write_config(tmp_path, str(data)), [*CD, f"objective.teacher={teacher}", "init=teacher"])


def test_a_teacher_that_has_gone_on_is_the_one_of_the_first_start(teacher: Path, student: config.Config) -> None:
    first = pins.pin(student, {}, begun=False)
    assert first["objective.teacher"]["step"] == 10 and first["objective.teacher"]["named"] == str(teacher)
    add_checkpoint(teacher, 20)
    assert pins.pin(student, {}, begun=False)["objective.teacher"]["step"] == 20  # what would have been taken
    for begun in (False, True):
        assert pins.pin(student, first, begun) == first
    assert pins.opened_at(student, first).teacher == first["objective.teacher"]["url"]
    # named by its own folder it is the same one; the newer one is refused, with both
    same = config.replaced(student, {"objective.teacher": first["objective.teacher"]["url"]})
    assert pins.pin(same, first, begun=True)["objective.teacher"]["weights"] == first["objective.teacher"]["weights"]
    other = config.replaced(student, {"objective.teacher": f"{teacher}/checkpoints/step-0000000020"})
    with pytest.raises(CheckpointError) as error:
        pins.pin(other, first, begun=True)
    newer = pins.pin(student, {}, begun=False)["objective.teacher"]
    assert f"began with step 10 of {teacher} ({first['objective.teacher']['weights']})" in str(error.value)
    assert f"step 20 of {other.teacher} ({newer['weights']}) is another" in str(error.value)


def test_a_moved_teacher_is_known_by_its_weights(teacher: Path, student: config.Config) -> None:
    first = pins.pin(student, {}, begun=False)
    add_checkpoint(teacher, 20)
    moved = teacher.rename(teacher.with_name("moved"))
    there = pins.pin(config.replaced(student, {"objective.teacher": str(moved)}), first, begun=True)[
        "objective.teacher"
    ]
    assert there["weights"] == first["objective.teacher"]["weights"] and there["url"].startswith(str(moved))
    with pytest.raises(CheckpointError, match="began with step 10 of .* nothing can be read there"):
        pins.pin(student, first, begun=True)


def test_retention_keeps_what_is_pinned_until_the_note_is_gone(teacher: Path, student: config.Config) -> None:
    first = pins.pin(student, {}, begun=False)
    pins.hold(first, "runs/student", "key")
    note = teacher / "pins" / "step-0000000010-key.json"
    assert json.loads(note.read_text())["run"] == "runs/student"
    for step in (20, 30, 40):
        add_checkpoint(teacher, step)

    def thin() -> None:
        (newest,) = (e for e in search.entries(str(teacher)) if e.step == 40)
        retention.thin(retention.thinning(str(teacher), newest.step, newest.attempt, Keep(1)))

    thin()
    assert search.steps(str(teacher)) == [10, 40]
    assert pins.pin(student, first, begun=True) == first
    note.unlink()
    thin()
    assert search.steps(str(teacher)) == [40]
    with pytest.raises(CheckpointError, match="began with step 10 of .* step 40 of .* is another: bring that one back"):
        pins.pin(student, first, begun=True)


def test_where_no_note_can_be_left_a_warning_says_who_needs_what(
    teacher: Path, student: config.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (teacher / "pins").write_text("in the way")
    pins.hold(pins.pin(student, {}, begun=False), "runs/student", "key")
    told = capsys.readouterr().err
    assert f"no note could be left in {teacher}/pins" in told
    assert "runs/student needs the averages of step 10 there at each start" in told


def test_a_file_is_pinned_by_its_checksum(tmp_path: Path, student: config.Config) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    one = config.replaced(student, {"objective.teacher": "exact", "init": str(path)})
    first = pins.pin(one, {}, begun=False)
    assert pins.pin(one, first, begun=False) == first
    path.write_bytes(b"two")
    assert pins.pin(one, first, begun=True) == first  # it is not needed again
    with pytest.raises(CheckpointError, match=r"init = .*this run began with .*weights.safetensors \(xxh3:"):
        pins.pin(one, first, begun=False)
    path.unlink()
    with pytest.raises(CheckpointError, match="nothing can be read there"):
        pins.pin(one, first, begun=False)


def test_a_distillation_ends_the_same_when_its_teacher_trains_on_meanwhile(tmp_path: Path, digits: str) -> None:
    """Through the commands: stopped after 4 of 8 steps, the teacher trains on and thins out, and it goes on."""
    path = write_config(tmp_path, digits)
    runs_ = tmp_path / "runs"
    edm = ["run.name=edm", "train.keep_checkpoints=1", "train.checkpoint_every=2", "optimizer.lr=0.01"]
    student = [*CD, f"objective.teacher={runs_}/edm", "init=teacher", "train.checkpoint_every=4"]

    def done(*arguments: str) -> Ranks:
        run = train(1, tmp_path / "log", path, *arguments)
        assert run.join() == [0], run.text
        return run

    done(*edm, "train.steps=4")
    done(*student, "run.name=straight", "train.steps=8")
    done(*student, "run.name=parts", "train.steps=4")
    done(*edm, "train.steps=8")
    assert search.steps(str(runs_ / "edm")) == [4, 8]  # 6 is thinned out, 4 is pinned
    resumed = done(*student, "run.name=parts", "train.steps=8")
    assert "step         4 of 8" in resumed.text
    assert files(runs_ / "parts", 8) == files(runs_ / "straight", 8)
    assert record.read(str(runs_ / "parts"))["pins"]["objective.teacher"]["step"] == 4
    # a new run takes the newest; from a checkpoint of the other run it keeps the other's
    done(*student, "run.name=new", "train.steps=2")
    assert record.read(str(runs_ / "new"))["pins"]["objective.teacher"]["step"] == 8
    done(*student, "run.name=branch", "train.steps=9", f"--resume={runs_}/parts")
    assert record.read(str(runs_ / "branch"))["pins"]["objective.teacher"]["step"] == 4
    # killed before its first commit, a run begins again with what it began with
    shutil.rmtree(runs_ / "new" / "checkpoints")
    shutil.rmtree(runs_ / "new" / "attempts")
    done(*edm, "train.steps=10")
    done(*student, "run.name=new", "train.steps=2")
    assert record.read(str(runs_ / "new"))["pins"]["objective.teacher"]["step"] == 8
    # another one is refused before anything starts, and a lost one too
    before = files(runs_ / "parts", 8)
    for arguments, says in (
        ([f"objective.teacher={runs_}/edm/checkpoints/step-0000000008"], "began with step 4 of"),
        ([f"objective.teacher={runs_}/new"], "began with step 4 of"),
    ):
        refused = train(1, tmp_path / "refused.log", path, *student, "run.name=parts", "train.steps=12", *arguments)
        assert refused.join() == [2] and says in refused.text and "Traceback" not in refused.text, refused.text
    assert files(runs_ / "parts", 8) == before and not committed(runs_ / "parts", 12)
    pipeline("checkpoints").main(["thin", str(runs_ / "edm"), "--last", "1"])
    assert search.steps(str(runs_ / "edm")) == [4, 8, 10]
