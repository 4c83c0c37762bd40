"""What a store keeps although it is told to delete, and what dead attempts leave on it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cmdist.checkpoints import checkpoint, progress, search
from cmdist.checkpoints.attempt import Attempt
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import StoreDenied
from cmdist.system import s3 as door
from cmdist.system import storage
from cmdist.system.distributed import World

LAYOUT = Layout.make([("w", (50,))])


def no_delete(monkeypatch: pytest.MonkeyPatch, code: str = "AccessDenied") -> None:
    """As under a policy without s3:DeleteObject: the request succeeds, and its answer names each key as refused."""
    import s3fs

    plain = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *rest: Any, **keywords: Any) -> Any:
        if method == "delete_objects":
            objects = keywords["Delete"]["Objects"]
            return {"Errors": [{"Key": o["Key"], "Code": code, "Message": code} for o in objects]}
        return await plain(self, method, *rest, **keywords)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", s3fs.core.sync_wrapper(call))


def save(saver: Saver, *steps: int) -> None:
    for step in steps:
        assert saver.ready(step, last=False)
        saver.save(step, Snapshot(0, {"master": torch.zeros(50)}, {0.9: torch.zeros(50)}, {}), last=step == steps[-1])
    saver.wait()


def test_refused_deletes_are_an_error_and_not_silence(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        storage.write(f"{s3}/folder/{name}", b"x")
    no_delete(monkeypatch)
    with pytest.raises(StoreDenied, match=r"folder: the store refuses to delete 2 of 2 files \(AccessDenied\)"):
        storage.remove(f"{s3}/folder")
    with pytest.raises(StoreDenied, match=r"folder/a: the store refuses to delete 1 of 1 files"):
        storage.remove(f"{s3}/folder/a")
    storage.remove(f"{s3}/nothing")  # as before: nothing happens


def test_a_delete_that_failed_for_a_moment_is_tried_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(f"{s3}/folder/a", b"x")
    monkeypatch.setattr(storage, "PAUSE", 0.01)
    with monkeypatch.context() as patch:
        no_delete(patch, "SlowDown")
        patch.setattr(storage, "ATTEMPTS", 2)
        with pytest.raises(OSError, match="the store failed 2 times .*1 of 1 files were not deleted: SlowDown"):
            storage.remove(f"{s3}/folder")
    storage.remove(f"{s3}/folder")
    assert storage.names(f"{s3}/folder") == []


def test_a_run_whose_store_deletes_nothing_says_so_once_and_counts_at_the_end(
    s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_delete(monkeypatch)
    save(Saver(f"{s3}/run", "id", LAYOUT, World(), keep=Keep(1)), 1, 2, 3, 4)
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be removed" in line]
    assert len(said) == 2 and "the store refuses to delete 1 of 1 files (AccessDenied)" in said[0]
    assert "; 1 that train.keep_checkpoints and" in said[0] and "; 3 that train.keep_checkpoints and" in said[1]
    assert search.steps(f"{s3}/run") == [1, 2, 3, 4], "nothing is half removed"
    for step in (1, 2, 3, 4):
        search.open_checkpoint(f"{s3}/run", step).verify()


def test_uploads_of_dead_attempts_are_aborted_at_the_next_start(s3: str) -> None:
    """Of this run's dead attempts only: not its own, nor another run's whose name begins alike, nor other files."""
    fs, _ = storage._resolve(s3)
    bucket, base = s3.removeprefix("s3://").split("/", 1)
    keys = {
        "dead": f"{base}/run/checkpoints/step-0000000010-0001/slices-00000-of-00001.safetensors",
        "own": f"{base}/run/checkpoints/step-0000000020-0002/slices-00000-of-00001.safetensors",
        "neighbour": f"{base}/run-2/checkpoints/step-0000000010-0001/slices-00000-of-00001.safetensors",
        "other": f"{base}/run/checkpoints/mine.bin",
    }
    for key in keys.values():
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    Attempt.take(f"{s3}/run")._over.set()
    storage.write(f"{s3}/run/attempts/000001.end", b"")
    second = Attempt.take(f"{s3}/run")
    assert second.number == 2 and progress.clear(f"{s3}/run", second) == []
    second.end()
    left = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=base)["Uploads"]
    assert {upload["Key"] for upload in left} == set(keys.values()) - {keys["dead"]}
    assert door.abort_uploads(fs, f"{bucket}/{base}", lambda path: True) == 3


def test_a_store_that_lists_no_uploads_is_left_alone(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert storage.abort_uploads(f"{s3}/nothing", lambda url: True) == 0
    assert storage.abort_uploads(str(tmp_path), lambda url: True) == 0


def test_an_unfinished_folder_goes_at_the_next_start_and_a_complete_one_never(tmp_path: Path) -> None:
    run = str(tmp_path)
    first = Attempt.take(run)
    first.begin(0)
    save(Saver(run, "id", LAYOUT, World(), attempt=first), 10, 20)
    first.end()
    big = checkpoint.folder(run, 30, 1)
    storage.write(f"{big}/UNFINISHED", b"")
    storage.write(f"{big}/slices-00000-of-00002.safetensors", bytes(1000))
    second = Attempt.take(run)
    assert progress.clear(run, second) == []
    second.end()
    assert [entry.step for entry in search.entries(run)] == [10, 20]
