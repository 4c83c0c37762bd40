"""Faults on the way to the store, at least 20 of each kind (slow): every checkpoint arrives, and what is read is right
or is not used.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch
from faults import FAULTS, FaultProxy

from cmdist.checkpoints import attempt as attempts
from cmdist.checkpoints import saver, search
from cmdist.checkpoints.attempt import attempt_at
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import CheckpointError, LookupFailed, StoreDenied, StoreError, StoreMissing
from cmdist.system import storage
from cmdist.system.distributed import World
from cmdist.train import resume
from servers import Rclone, environment

LAYOUT = Layout.make([("w", (3000,))])


@pytest.fixture
def proxy(server: Rclone, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Between this process and the server; quick to lose patience."""
    between = FaultProxy(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
    for name, value in (("PAUSE", 0.002), ("READ_TIMEOUT", 0.4), ("ATTEMPTS", 9)):
        monkeypatch.setattr(storage, name, value)
    monkeypatch.setattr(saver, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(attempts, "BEAT", 0.2)
    monkeypatch.setattr(attempts, "SILENCE", 1.0)
    s3fs.S3FileSystem.clear_instance_cache()
    yield between
    between.close()


def snapshot(step: int) -> Snapshot:
    vector = torch.arange(3000.0) + step
    return Snapshot(0, {"master": vector, "exp_avg": -vector}, {0.9: vector / 3}, {"identity": {}})


@pytest.mark.parametrize("kind", FAULTS)
def test_saving_and_coming_back(s3: str, proxy: FaultProxy, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_and_come_back(s3, proxy, kind, 1, 8, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_coming_back_twenty_times(s3: str, proxy: FaultProxy, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_and_come_back(s3, proxy, kind, 20, 20, capsys)


def save_and_come_back(
    s3: str, proxy: FaultProxy, kind: str, comings: int, faults: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One attempt after another saves two steps and the next comes back to the newest, under faults all the time."""
    run, step, resumes = f"{s3}/run", 0, 0
    proxy.kind, proxy.rate = kind, 0.05 if kind == "flipped" else 0.15
    while proxy.count[kind] < faults or resumes < comings:
        with attempt_at(run, World()) as attempt:
            found = resume.find(run, ("id",), "auto", World())
            assert (found.step if found else 0) == step
            if found:
                for start, stop in ((0, 3000), (100, 2999)):
                    vector = torch.arange(3000.0)[start:stop] + step
                    assert torch.equal(found.read_state("master", start, stop), vector)
                    assert torch.equal(found.read_state("exp_avg", start, stop), -vector)
                    assert torch.equal(found.read_ema(0.9, start, stop), vector / 3)
            attempt.begin(step)
            resumes += found is not None
            background = Saver(run, "id", LAYOUT, World(), attempt=attempt, keep=Keep(2))
            for _ in range(2):
                step += 1
                assert background.ready(step, last=True)
                background.save(step, snapshot(step), last=True)
                background.wait()
    proxy.rate = 0.0
    print(f"{kind}: {proxy.count[kind]} faults, {step} checkpoints, {resumes} resumes, all right")
    assert search.steps(run) == [step - 1, step]
    for left in search.steps(run):
        search.open_checkpoint(run, left).verify()
    assert not any("DAMAGED" in entry.names for entry in search.entries(run)), capsys.readouterr().err


def test_a_large_upload_survives_in_parts(s3: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.arange(5 * 2**20, dtype=torch.int32).numpy().tobytes()  # four parts
    proxy.kind, proxy.rate, proxy.only = "throttled", 0.3, "partNumber"
    for name, value in (("READ_TIMEOUT", 30.0), ("LARGE", 2**20), ("PART", 5 * 2**20)):
        monkeypatch.setattr(storage, name, value)
    while not proxy.count["throttled"]:
        storage.write(f"{s3}/large", data)
    proxy.rate = 0.0
    assert storage.read(f"{s3}/large") == data


USES = {
    "write": lambda url: storage.write(url, b"x"),
    "read": storage.read,
    "ranges": lambda url: storage.read_ranges(url, [(0, 1)]),
    "exists": storage.exists,
    "names": lambda url: storage.names(url.rpartition("/")[0]),
    "remove": storage.remove,
    "create": lambda url: storage.create(f"{url}-new", b"x"),
    "large": lambda url: storage.write(url, bytes(11 * 2**20)),
}


@pytest.mark.parametrize("use", USES)
def test_one_layer_asks_again(s3: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    """A fault that passes costs one request more, one that lasts as many as there are attempts: layers that each try
    again would multiply.
    """
    for name, value in (("READ_TIMEOUT", 30.0), ("LARGE", 2**20), ("PART", 5 * 2**20), ("ATTEMPTS", 5)):
        monkeypatch.setattr(storage, name, value)

    def requests(faults: int) -> int:
        storage.write(f"{s3}/folder/file", b"x")
        proxy.left = -1
        storage.remove(f"{s3}/folder/file-new")
        proxy.kind, proxy.rate, proxy.left = "throttled", 1.0, faults
        before = proxy.count["requests"]
        try:
            USES[use](f"{s3}/folder/file")
        except StoreError as error:
            assert faults == -1 and "the store failed 5 times" in str(error)
        else:
            assert faults != -1
        proxy.rate = 0.0
        return proxy.count["requests"] - before

    usual = requests(0)
    assert requests(1) == usual + 1
    assert requests(-1) == 5


@pytest.mark.parametrize("kind", ["throttled", "failed", "skewed", "reset"])
def test_a_store_that_only_fails(s3: str, proxy: FaultProxy, kind: str) -> None:
    storage.write(f"{s3}/file", b"old")
    proxy.kind, proxy.rate = kind, 1.0
    with pytest.raises(
        StoreError, match=rf"file: the store failed 9 times in \d+ s, last with .*{'clock' if kind == 'skewed' else ''}"
    ):
        storage.write(f"{s3}/file", b"new")
    with pytest.raises(LookupFailed, match="could not look for checkpoints .* the run is not started over") as error:
        search.steps(f"{s3}/run")
    assert error.value.exit_code == 3
    proxy.rate = 0.0
    assert storage.read(f"{s3}/file") == b"old"


def test_no_access_is_not_tried_again(s3: str, proxy: FaultProxy) -> None:
    proxy.kind, proxy.rate = "denied", 1.0
    for use in (lambda url: storage.write(url, b""), storage.read, storage.names, storage.exists, storage.remove):
        before = proxy.count["denied"]
        with pytest.raises(
            StoreDenied, match="the store refuses access .*; check the credentials in the environment and their rights"
        ):
            use(f"{s3}/file")
        # an answer to HEAD does not say why, so that is asked again for a moment
        assert proxy.count["denied"] - before <= (storage.ATTEMPTS if use in (storage.exists, storage.read) else 2)


def test_a_wrong_secret_and_no_credentials(
    s3: str, server: Rclone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment(server.port, secret="wrong").items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(LookupFailed, match="refuses access"):
        search.steps(f"{s3}/run")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreDenied, match="no credentials were found .*; set them in the environment"):
        storage.write(f"{s3}/file", b"")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_bucket_is_not_an_empty_folder(s3: str) -> None:
    for use in (storage.names, storage.exists, storage.size, storage.read, lambda url: storage.write(url, b"")):
        with pytest.raises(StoreMissing, match="s3://nobody-has-made-this/x/y: the bucket does not exist"):
            use("s3://nobody-has-made-this/x/y")
    with pytest.raises(LookupFailed, match="the bucket does not exist; the run is not started over"):
        search.steps("s3://nobody-has-made-this/run")


@pytest.mark.parametrize(
    ("kind", "sentence"), [("denied", "the store refuses access"), ("gone", "the bucket does not exist")]
)
def test_permission_lost_or_bucket_deleted_half_way(
    s3: str, proxy: FaultProxy, capsys: pytest.CaptureFixture[str], kind: str, sentence: str
) -> None:
    """Told at the next step, not tried again for that step, and the next one that is allowed is saved."""
    background = Saver(f"{s3}/run", "id", LAYOUT, World(), max_missed=2)

    def save(step: int) -> None:
        assert background.ready(step, last=False)
        background.save(step, snapshot(step))
        assert background._job
        assert background._job.done.wait(30)

    save(1)
    proxy.kind, proxy.rate = kind, 1.0
    save(2)
    save(3)
    background.check()
    assert "step 3 in" in (said := capsys.readouterr().err) and said.count(sentence) == 2
    assert proxy.count[kind] <= 4
    with pytest.raises(LookupFailed, match=f"{sentence}.*; the run is not started over"):
        resume.find(f"{s3}/run", ("id",), "auto", World())
    proxy.rate = 0.0
    save(4)
    assert search.steps(f"{s3}/run") == [1, 4]
    proxy.rate = 1.0
    for step in (5, 6):
        save(step)
    background.check()
    save(7)
    with pytest.raises(CheckpointError, match=f"{sentence}.* that is 3 in a row without a commit"):
        background.check()


def test_a_store_that_is_down_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The save under way is tried until the store is back; saves that fall due meanwhile are skipped, and nobody
    waits.
    """
    with Rclone(tmp_path / "s3") as own:
        for name, value in environment(own.port).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setattr(storage, "PAUSE", 0.01)
        monkeypatch.setattr(saver, "LONGEST_PAUSE", 0.2)
        background = Saver("s3://bucket/run", "id", LAYOUT, World(), max_missed=5)
        background.save(1, snapshot(1))
        background.wait()
        own.kill()
        background.save(2, snapshot(2))
        while not background._job or not background._job.trouble:
            time.sleep(0.01)
        begin = time.monotonic()
        assert [background.ready(step, last=False) for step in (3, 4)] == [False, False]
        background.check()
        assert time.monotonic() - begin < 0.5
        assert "step 4 is not saved, the save of step 2 is still under way" in capsys.readouterr().err
        own.start()
        background.wait()
        assert background.ready(5, last=True)
        background.save(5, snapshot(5), last=True)
        background.wait()
        assert search.steps("s3://bucket/run") == [1, 2, 5]
        own.kill()
        background.save(6, snapshot(6))
        while not background._job.trouble:
            time.sleep(0.01)
        assert not any(background.ready(step, last=False) for step in (7, 8, 9, 10, 11, 12))
        with pytest.raises(CheckpointError, match="step 12 is not saved, .* that is 6 in a row without a commit"):
            background.check()
        background._job.give_up = True
        background._job.done.wait(30)
