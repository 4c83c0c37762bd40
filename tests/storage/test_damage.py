"""Whatever has happened to a run folder: the newest sound checkpoint is taken, the damaged one is named and stays,
nothing starts over.
"""

import errno
import json
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmdist.checkpoints import checkpoint, sealed, search
from cmdist.checkpoints.attempt import attempt_at
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import CheckpointError, LookupFailed
from cmdist.system import storage
from cmdist.system.distributed import World
from cmdist.train import resume

LAYOUT = Layout.make([("w", (300,))])


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    return s3 if request.param == "s3" else str(tmp_path)


def make(run: str, *steps: int, run_id: str = "id") -> None:
    with attempt_at(run, World()) as attempt:
        attempt.begin(0)
        saver = Saver(run, run_id, LAYOUT, World(), attempt=attempt)
        for step in steps:
            vector = torch.arange(300.0) + step
            assert saver.ready(step, last=False)
            saver.save(step, Snapshot(0, {"master": vector, "exp_avg": -vector}, {0.9: vector / 3}, {"identity": {}}))
        saver.wait()


def find(run: str, mode: str = "auto") -> checkpoint.Checkpoint | None:
    return resume.find(run, ("id",), mode, World())


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(data: bytes) -> bytes:
    at = len(data) * 2 // 3
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def of_another_run(data: bytes) -> bytes:
    commit = json.loads(data)
    del commit["seal"]
    return sealed.seal(commit | {"run": "another"})


FILES = ("slices-00000-of-00001.safetensors", "ema-0.9.safetensors", "state.json")


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        *((name, flip, f"is damaged: {name} has a wrong checksum") for name in FILES),
        *((name, cut, rf"is damaged: {name} has \d+ bytes, \d+ were committed") for name in FILES),
        *((name, None, f"is damaged: {name} is missing") for name in FILES),
        ("COMMIT", flip, "COMMIT is damaged"),
        ("COMMIT", cut, "COMMIT is damaged"),
        ("COMMIT", lambda data: b"", "COMMIT is damaged"),
        ("COMMIT", of_another_run, r"COMMIT belongs to another run \(another\)"),
    ],
)
def test_a_damaged_newest_is_set_aside(
    root: str, name: str, damage: Callable[[bytes], bytes] | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, 10, 20)
    url = f"{checkpoint.folder(root, 20, 1)}/{name}"
    if damage is None:
        storage.remove(url)
    else:
        storage.write(url, damage(storage.read(url)))
    found = find(root)
    assert found is not None and found.step == 10
    assert torch.equal(found.read_state("master", 0, 300), torch.arange(300.0) + 10)
    warning = capsys.readouterr().err
    assert (
        re.search(says, warning)
        and "it is set aside, and the one before is looked at" in warning
        and "-0001" in warning
    )
    assert damage is None or storage.exists(url), "set aside, not deleted"
    assert search.steps(root) == [10]
    again = find(root)
    assert again is not None and again.step == 10 and not capsys.readouterr().err


def test_if_all_are_damaged_nothing_starts_over(root: str) -> None:
    make(root, 10)
    storage.write(f"{checkpoint.folder(root, 10, 1)}/COMMIT", b"")
    for _ in range(2):  # nor at the second try
        with pytest.raises(
            CheckpointError,
            match="committed checkpoints, but none that can be continued .* the run is not started over",
        ):
            find(root)


def test_foreign_files_and_what_was_never_finished_do_no_harm(root: str) -> None:
    make(root, 10)
    for name in (
        "notes.txt",
        "step-abc/COMMIT",
        "step-0000000030/slices-00000-of-00001.safetensors",
        "step-0000000040-0001/.COMMIT.tmp",
    ):
        storage.write(f"{root}/checkpoints/{name}", b"mine")
    storage.write(f"{checkpoint.folder(root, 10, 1)}/also-mine.txt", b"mine")
    storage.write(f"{root}/attempts/README", b"mine")
    found = find(root)
    assert found is not None and found.step == 10
    found.verify()


def test_none_there(root: str) -> None:
    assert find(root) is None and find(root, "none") is None
    make(root, 10)
    with pytest.raises(CheckpointError, match=r"--resume none, but .* has committed checkpoints \(newest: step 10\)"):
        find(root, "none")


def test_a_url_is_where_a_new_run_starts_and_its_own_checkpoints_come_first(root: str) -> None:
    other, mine = f"{root}/other", f"{root}/mine"
    make(other, 10, 20, run_id="other")
    for url, step in ((other, 20), (f"{other}/checkpoints/step-0000000010", 10), (checkpoint.folder(other, 10, 1), 10)):
        found = find(mine, url)
        assert found is not None and found.step == step and found.url.startswith(other)
    make(mine, 30)
    found = find(mine, other)
    assert found is not None and found.step == 30
    for url in (f"{root}/nowhere", f"{other}/checkpoints/step-0000000077"):
        with pytest.raises(CheckpointError, match=r"nowhere|no checkpoint of step 77; it has step 10, 20"):
            find(f"{root}/third", url)
    storage.write(f"{checkpoint.folder(other, 20, 1)}/state.json", b"{}")
    with pytest.raises(CheckpointError, match="is damaged: state.json"):
        find(f"{root}/third", other)
    assert search.steps(other) == [10, 20], "nothing is marked in another run's folder"


def test_the_bucket_was_deleted(s3: str) -> None:
    with pytest.raises(
        LookupFailed, match="could not look for checkpoints in s3://gone/run: .*the bucket does not exist"
    ) as error:
        find("s3://gone/run")
    assert error.value.exit_code == 3


def saver_at(run: str, keep: int = 0, missed: int = 2) -> Saver:
    return Saver(run, "id", LAYOUT, World(), keep=Keep(keep), max_missed=missed)


def save(saver: Saver, step: int, last: bool = False, numbers: int = 300) -> bool:
    if not saver.ready(step, last):
        return False
    saver.save(step, Snapshot(0, {"master": torch.zeros(numbers)}, {0.9: torch.zeros(300)}, {}), last)
    if saver._job:
        saver._job.done.wait()
    return True


@pytest.mark.parametrize("when", ["at fsync", "in the middle of a file"])
def test_a_full_disk_misses_checkpoints_and_then_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    """A system may say so only when the bytes are to go to the disk; a limit is the system's own word (a real disk:
    test_training.py).
    """
    run, plain, room, (_, hard) = str(tmp_path), os.fsync, [True], resource.getrlimit(resource.RLIMIT_FSIZE)

    def fsync(handle: int) -> None:
        if not room[0] and when == "at fsync":
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    def full(yes: bool) -> None:
        room[0] = not yes
        if when != "at fsync":
            resource.setrlimit(resource.RLIMIT_FSIZE, (250_000 if yes else hard, hard))

    monkeypatch.setattr(os, "fsync", fsync)
    saver = saver_at(run)
    try:
        assert save(saver, 1, numbers=100_000)
        full(True)
        assert save(saver, 2, numbers=100_000) and save(saver, 3, numbers=100_000)
        full(False)
        assert save(saver, 4)  # there is room again: the row is broken
        full(True)
        assert save(saver, 5, numbers=100_000) and save(saver, 6, numbers=100_000) and save(saver, 7, numbers=100_000)
    finally:
        full(False)
    said = "No space left on device" if when == "at fsync" else "File too large"
    with pytest.raises(CheckpointError, match=rf"step 7 .*{said}; that is 3 in a row .*max_missed_checkpoints \(2\)"):
        saver.check()
    assert "step 2" in capsys.readouterr().err
    assert search.steps(run) == [1, 4]
    assert not list(tmp_path.rglob(".*")), "no half of a file is left"


def test_an_error_that_is_no_store_s_is_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(url: str, data: object) -> None:
        raise TypeError("a mistake of ours")

    saver = saver_at(str(tmp_path))
    monkeypatch.setattr(storage, "write", wrong)
    saver.save(1, Snapshot(0, {"master": torch.zeros(300)}, {0.9: torch.zeros(300)}, {}))
    with pytest.raises(TypeError, match="a mistake of ours"):
        saver.wait()
