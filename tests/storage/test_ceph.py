"""On Ceph's radosgw, a store with conditional puts and durable writes: one attempt of many, no commit after a takeover,
nothing lost.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch
from ceph import MISSING, Ceph

from cmdist.checkpoints import attempt, sealed, search
from cmdist.checkpoints.attempt import Attempt, attempt_at
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import CmdistError, Fenced, RunInUse
from cmdist.system import storage
from cmdist.system.distributed import World
from cmdist.train import resume
from servers import environment

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install radosgw ceph-mon ceph-osd"
)
LAYOUT = Layout.make([("w", (1000,))])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with Ceph(tmp_path_factory.mktemp("ceph")) as running:
        yield running


@pytest.fixture
def run(cluster: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in environment(cluster.port).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    return f"s3://bucket/{tmp_path.name}"


def test_of_many_writers_one_creates(run: str) -> None:
    barrier = threading.Barrier(8)

    def go(number: int) -> None:
        barrier.wait()
        storage.create(f"{run}/one", str(number).encode() * 10)

    seen = set()
    for _ in range(3):
        threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen.add(storage.read(f"{run}/one"))
    assert len(seen) == 1, "what was created once is never replaced"


def test_of_many_attempts_one_wins(run: str) -> None:
    won, refused = [], []
    barrier = threading.Barrier(6)

    def go() -> None:
        barrier.wait()
        try:
            won.append(Attempt.take(run))
        except RunInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 5 and attempt.numbers(run) == [1]
    won[0].end()


def snapshot(step: int) -> Snapshot:
    vector = torch.arange(1000.0) + step
    return Snapshot(0, {"master": vector}, {0.9: vector / 3}, {"identity": {}})


def test_a_takeover_and_what_a_power_cut_leaves(run: str, cluster: Ceph) -> None:
    """All daemons are killed without warning while a checkpoint is written: what was committed before is there,
    whole.
    """
    with attempt_at(run, World()) as first:
        first.begin(0)
        saver = Saver(run, "id", LAYOUT, World(), attempt=first, keep=Keep(2), max_missed=9)
        for step in (1, 2, 3):
            assert saver.ready(step, last=False)
            saver.save(step, snapshot(step))
        saver.wait()
        assert search.steps(run) == [2, 3]
        saver.save(4, snapshot(4))
        cluster.kill()
        cluster.start()
        saver.wait()
        found = resume.find(run, ("id",), "auto", World())
        assert found is not None and found.step == 4
        for step in search.steps(run):
            opened = search.open_checkpoint(run, step)
            opened.verify()
            assert torch.equal(opened.read_state("master", 0, 1000), torch.arange(1000.0) + step)
        first._over.set()
        claim = sealed.read(f"{run}/attempts/000001")
        storage.write(f"{run}/attempts/000002", sealed.seal(claim | {"token": "another"}))
        saver.save(5, snapshot(5))
        with pytest.raises(Fenced, match="attempt 2, process .* has taken over"):
            saver.wait()
    assert search.steps(run)[-1] == 4


def test_a_wrong_secret(run: str, cluster: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CmdistError, match="the store refuses access"):
        storage.write(f"{run}/file", b"")
