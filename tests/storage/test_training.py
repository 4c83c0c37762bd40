"""The real command with run.root on an S3 server: what it leaves there, whom it lets in, and that no secret gets
out.
"""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest
import s3fs

from cmdist import config
from cmdist.errors import ConfigError
from cmdist.system import urls
from ranks import Ranks, pipeline, run_pipeline, train
from servers import SECRET, Rclone, environment
from training import OBJECTIVES, committed, write_config

ROOT = "run.root=s3://bucket/runs"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rclone:
    with Rclone(tmp_path / "s3") as running:
        for name, value in (environment(running.port) | {"HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # those of another test know another server
        yield running


def test_no_secret_gets_out(tmp_path: Path, digits: str, own: Rclone) -> None:
    """Credentials come from the environment; they are in no file and no line that a run, a failure or a traceback
    leaves.
    """
    settings = write_config(tmp_path, digits)
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    first = train(
        2,
        tmp_path / "a.log",
        settings,
        ROOT,
        tracking,
        "train.steps=6",
        "train.checkpoint_every=3",
        "train.keep_checkpoints=1",
    )
    assert first.join() == [0, 0], first.text
    assert [p.name for p in (own.folder / "bucket/runs/small/checkpoints").iterdir()] == ["step-0000000006-0001"]
    missing = train(1, tmp_path / "b.log", settings, "run.root=s3://no-such-bucket/runs", tracking, "--debug")
    assert missing.join() == [2]  # no later start will find it
    assert "the bucket does not exist" in missing.text and "Traceback" in missing.text
    os.environ["AWS_SECRET_ACCESS_KEY"] = f"not-{SECRET}"
    refused = train(1, tmp_path / "c.log", settings, ROOT, tracking, "--debug")
    assert refused.join() == [2]
    assert "refuses access" in refused.text
    said = train(1, tmp_path / "url.log", settings, f"run.root=s3://KEY:{SECRET}@bucket/runs", "--debug")
    assert said.join() == [2]
    os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
    searched = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"a.log", "c.log", "url.log", "mlflow.db", "points.jsonl", "config.yaml", "COMMIT"} <= {
        path.name for path in searched
    }
    assert [str(path) for path in searched if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("run.root", "s3://KEY:SECRET@bucket/runs"),
        ("run.root", "s3://SECRET@bucket/runs"),
        ("data.url", "https://host/data?X-Amz-Signature=SECRET"),
        ("data.url", "abfs://user:SECRET@account.dfs.core.windows.net/data"),
        ("tracking.uri", "http://user:SECRET@host:5000"),
        ("objective.teacher", "gs://bucket/teacher#SECRET"),
        ("init", "s3://bucket/init?secret=SECRET"),
    ],
)
def test_urls_that_hold_secrets_are_refused_without_repeating_them(tmp_path: Path, key: str, url: str) -> None:
    url = url.replace("SECRET", SECRET)
    with pytest.raises(ConfigError, match=f"^{key} = .*query string is refused, since URLs are logged") as error:
        config.load(write_config(tmp_path, "data"), [f"{key}={url}"])
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("key", ["teacher", "run.name.x", "loss.lpips_weights"])
def test_a_key_that_is_refused_does_not_repeat_its_value(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(write_config(tmp_path, "data"), [f"{key}=s3://KEY:{SECRET}@bucket/x"])
    assert SECRET not in str(error.value)


def test_ordinary_urls_are_not_refused(tmp_path: Path) -> None:
    for url in (
        "s3://bucket/a b/c@d",
        "abfs://container@account.dfs.core.windows.net/runs",
        "/home/me/a?b#c",
        "sqlite:////tmp/x.db",
        "http://host:5000",
    ):
        urls.refuse_secrets(url)


def test_a_run_that_is_alive_is_not_entered(tmp_path: Path, digits: str, own: Rclone) -> None:
    settings = write_config(tmp_path, digits)
    alive = train(
        1, tmp_path / "a.log", settings, ROOT, *OBJECTIVES["ct"], "train.steps=100000", "train.self_check=false"
    )
    alive.until(lambda: "ranks   " in alive.text)
    second = train(2, tmp_path / "b.log", settings, ROOT, *OBJECTIVES["ct"], "train.steps=100000")
    assert second.join() == [4, 4]
    assert (
        second.text.count(f"is in use by attempt 1, process {alive.processes[0].pid} on ") == 2
        and "Traceback" not in second.text
    )
    alive.until(lambda: committed("s3://bucket/runs/small", 10))
    alive.kill()


def on_a_small_disk(folder: str, arguments: list[str]) -> None:
    """pipelines/train.py with 1 MiB of disk at `folder`, which only this process sees; then what is left there."""
    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS: its own table of mounts, which ends with it
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
    try:
        run_pipeline("train", arguments)
    finally:
        found = sorted(
            path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.name.startswith(".")
        )
        print(f"halves of files: {found}")
        pipeline("checkpoints").main(["verify", f"{folder}/small"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path, digits: str) -> None:
    """Training goes on without the checkpoints that found no room, until these are too many; those before are whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    more = ["train.steps=100", "train.checkpoint_every=5", "train.max_missed_checkpoints=2", "train.micro_batch=16"]
    run = Ranks(
        1, tmp_path / "a.log", on_a_small_disk, str(disk), [write_config(tmp_path, digits), f"run.root={disk}", *more]
    )
    assert run.join() == [1]
    said = re.search(
        r"error: .*step-0000000(\d+)-0001 was not committed: .*No space left on device; that is 3 in a row", run.text
    )
    assert said and "Traceback" not in run.text, run.text
    steps = [int(step) for step in re.findall(r"^step (\d+): \d+ files, .* bytes are right", run.text, re.MULTILINE)]
    assert steps == list(range(5, int(said[1]) - 10, 5)) and len(steps) >= 2, run.text
    assert "halves of files: []" in run.text
    assert list(disk.iterdir()) == [], "nobody else has seen that disk"
