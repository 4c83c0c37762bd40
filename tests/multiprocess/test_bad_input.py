"""What a user gets for bad input: one sentence, a non-zero exit, nothing half-written. Through the real command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ranks import train
from training import OBJECTIVES, committed, write_config

Damage = Callable[[Path], None]


def shards(data: Path) -> list[Path]:
    return sorted(data.glob("shard-*.tar"))


def missing_shard(data: Path) -> None:
    shards(data)[1].unlink()


def truncated_shard(data: Path) -> None:
    path = shards(data)[1]
    path.write_bytes(path.read_bytes()[:-5000])


def corrupt_shard(data: Path) -> None:
    for path in shards(data):
        content = bytearray(path.read_bytes())
        for place in range(512, len(content), 512):  # somewhere in every member
            content[place + 40] ^= 0x10 if place + 40 < len(content) else 0
        path.write_bytes(content)


def index_of_another_set(data: Path) -> None:
    index = json.loads((data / "index.json").read_text())
    index["shards"][0]["count"] += 1
    (data / "index.json").write_text(json.dumps(index))


def no_index(data: Path) -> None:
    (data / "index.json").unlink()


def empty(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (missing_shard, 2, "shard-000001.tar is missing"),
        (truncated_shard, 2, "shard-000001.tar"),
        (corrupt_shard, 1, "is corrupt"),  # nobody reads all the bytes before the start
        (index_of_another_set, 2, "index"),
        (no_index, 2, "index.json is missing"),
        (empty, 2, "there is no data set at"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_damaged_data(tmp_path: Path, digits: str, damage: Damage, code: int, says: str, ranks: int) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    damage(data)
    run = train(ranks, tmp_path / "log", write_config(tmp_path, str(data)), "train.steps=3")
    codes = run.join(60)
    assert codes == [code] * ranks, (codes, run.text)
    errors = [line for line in run.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == ranks and any(says in line for line in errors), run.text
    assert "Traceback" not in run.text
    assert (tmp_path / "runs").exists() == (code == 1), "nothing is made before it is known to be right"


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        (["train.stepz=3"], 2, "unknown key 'train.stepz'; did you mean 'steps'?"),
        (["train.steps=many"], 2, "key 'train.steps' = 'many'"),
        (["data.image_size=16"], 2, "the images have image_size 8, data.image_size says 16"),
        (["data.channels=3"], 2, "the images have channels 1, data.channels says 3"),
        (["data.classes=7"], 2, "the data set has 10 classes, data.classes says 7"),
        (
            ["objective.kind=consistency_distillation", "objective.teacher=nowhere"],
            2,
            "nowhere is not a run folder: it has no config.yaml",
        ),
        (["data.url=pipe:cat"], 2, "data.url = pipe:cat: 'pipe:' URLs run shell commands and are refused"),
        (["init=nowhere"], 2, "nowhere is not a run folder"),
        (["network.head_channels=7"], 2, "head_channels 7 must divide"),
    ],
)
def test_impossible_configurations(tmp_path: Path, digits: str, overrides: list[str], code: int, says: str) -> None:
    run = train(1, tmp_path / "log", write_config(tmp_path, digits), *overrides)
    assert run.join(60) == [code], run.text
    assert f"error: {says}" in run.text or (says in run.text and run.text.count("error: ") == 1), run.text
    assert "Traceback" not in run.text
    assert not (tmp_path / "runs").exists()


def test_too_many_ranks_for_the_global_batch(tmp_path: Path, digits: str) -> None:
    run = train(3, tmp_path / "log", write_config(tmp_path, digits))
    assert run.join(60) == [2, 2, 2]
    assert "3 ranks cannot share train.global_batch / train.micro_batch = 4 micro-batches evenly" in run.text
    assert not (tmp_path / "runs").exists()


def test_a_teacher_of_another_architecture(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    assert train(1, tmp_path / "a.log", config, "run.name=teacher", "train.steps=2").join() == [0]
    distil = [
        "objective.kind=consistency_distillation",
        f"objective.teacher={tmp_path}/runs/teacher",
        "run.name=student",
        "train.steps=2",
    ]
    assert train(1, tmp_path / "b.log", config, *distil, "init=teacher").join() == [
        0
    ]  # the same architecture is welcome
    assert train(1, tmp_path / "c.log", config, *distil, "run.name=other", "network.model_channels=16").join() == [
        0
    ]  # as teacher only
    refused = train(
        1, tmp_path / "d.log", config, *distil, "run.name=third", "init=teacher", "network.model_channels=16"
    )
    assert refused.join() == [2]
    assert "has another architecture: time_embed.0.weight is [32, 8] there and [64, 16] here" in refused.text
    not_a_teacher = train(
        1, tmp_path / "e.log", config, *distil, f"objective.teacher={tmp_path}/runs/student", "run.name=fourth"
    )
    assert not_a_teacher.join() == [2]
    assert "is no denoiser, its objective is consistency_distillation; a teacher must be one" in not_a_teacher.text
    unlabelled = train(1, tmp_path / "f.log", config, *distil, "run.name=fifth", "data.classes=0")
    assert unlabelled.join() == [2]
    assert "has data.classes 10, this run has 0" in unlabelled.text


def test_debug_shows_the_traceback(tmp_path: Path, digits: str) -> None:
    run = train(1, tmp_path / "log", write_config(tmp_path, digits), "data.image_size=16", "--debug")
    assert run.join(60) == [2]
    assert "Traceback" in run.text and "error: " in run.text


def test_a_failure_of_one_rank_ends_all_with_its_cause(tmp_path: Path, digits: str) -> None:
    """Rank 1's part of the data is damaged while the run is under way: rank 0 must not hang, and must say why it
    ends.
    """
    config = write_config(tmp_path, digits)
    run = train(
        2, tmp_path / "log", config, "train.steps=100000", "train.global_batch=8", "data.bad_samples=0", "run.name=long"
    )
    while not committed(tmp_path / "runs" / "long", 10):
        assert all(p.exitcode is None for p in run.processes), run.text
    run.processes[1].kill()
    codes = run.join(60)
    assert codes[1] == -9 and codes[0] == 1, (codes, run.text)
    assert "Traceback" not in run.text and run.text.count("error: ") == 1, run.text


def test_nothing_runs_in_a_dry_run(tmp_path: Path, digits: str) -> None:
    run = train(1, tmp_path / "log", write_config(tmp_path, digits), *OBJECTIVES["ct"], "--dry-run", "--ranks", "2")
    assert run.join(60) == [0], run.text
    assert "# micro-batches per rank and step: 2 (4 of 4 images over 2 ranks)" in run.text
    assert "# images to be seen: 320" in run.text
    assert "# parameters: " in run.text
    assert not (tmp_path / "runs").exists()
