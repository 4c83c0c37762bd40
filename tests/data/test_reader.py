import contextlib
import hashlib
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from cmdist.data import reader
from cmdist.data.decode import BadImageError
from cmdist.data.order import Order, schedule
from cmdist.data.reader import flips, micro_batches
from cmdist.errors import DataError

B, M = 4, 4


def take(dataset, numbers, n, **options):
    order = Order(dataset.counts, seed=1, block_shards=2)
    with contextlib.closing(micro_batches(dataset, order, B, iter(numbers), seed=1, **options)) as batches:
        return list(itertools.islice(batches, n))


def digest(batch):
    parts = [batch.ids, batch.images, batch.labels]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


@pytest.fixture
def left_behind(children):
    """Threads and processes that the test started and that are still there; queues of processes end their threads a
    moment later.
    """
    before = set(threading.enumerate())

    def look(patience=3.0):
        deadline = time.monotonic() + patience
        while left := (set(threading.enumerate()) - before) or children():
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return left

    return look


def test_a_micro_batch_holds_the_samples_of_its_positions(dataset):
    order = Order(dataset.counts, seed=1, block_shards=2)
    (batch,) = take(dataset, [11], 1)
    assert batch.number == 11 and batch.ids.tolist() == order.ids(11 * B, B).tolist() and batch.replaced == []
    pixels = dataset.images(batch.ids)
    assert batch.images.dtype == torch.uint8 and batch.labels.dtype == torch.int64
    assert torch.equal(batch.images, pixels)
    source = pixels[:, 0, 0, 0].long() + 256 * pixels[:, 0, 0, 1].long()
    assert torch.equal(batch.labels, source % 10)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_same_samples_for_any_number_of_ranks_and_workers(dataset, workers):
    want = {b.number: digest(b) for b in take(dataset, schedule(3, M, 0, 1), 8, flip=True)}  # steps 3 and 4
    for world in (1, 2, 4) if workers < 2 else (2,):
        got = {}
        for rank in range(world):
            batches = take(dataset, schedule(3, M, rank, world), 8 // world, flip=True, workers=workers)
            assert [b.number for b in batches] == list(itertools.islice(schedule(3, M, rank, world), 8 // world))
            got |= {b.number: digest(b) for b in batches}
        assert got == want
    assert len(set(want.values())) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_anywhere_gives_the_tail(dataset, workers):
    whole = [digest(b) for b in take(dataset, range(30), 30, flip=True)]  # 120 samples: more than two epochs
    for start in (1, 13, 26):
        tail = take(dataset, range(start, 30), 30, flip=True, workers=workers)
        assert [digest(b) for b in tail] == whole[start:]


def test_a_flip_depends_on_seed_number_and_place_only(dataset):
    assert np.array_equal(flips(1, 7, 100)[:10], flips(1, 7, 10))
    assert not np.array_equal(flips(1, 7, 100), flips(1, 8, 100)) and not np.array_equal(
        flips(1, 7, 100), flips(2, 7, 100)
    )
    assert abs(np.mean([flips(0, g, 100).mean() for g in range(100)]) - 0.5) < 0.02
    (plain,), (mirrored,) = take(dataset, [5], 1), take(dataset, [5], 1, flip=True)
    chance = torch.from_numpy(flips(1, 5, B))
    assert chance.any() and not chance.all()
    want = torch.where(chance[:, None, None, None], plain.images.flip(3), plain.images)
    assert torch.equal(mirrored.images, want)


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_leaves_no_thread_or_process(dataset, workers, left_behind):
    order = Order(dataset.counts, seed=1)
    batches = micro_batches(dataset, order, B, schedule(0, M, 0, 1), seed=1, workers=workers)
    next(batches)
    assert left_behind(patience=0)
    start = time.perf_counter()
    batches.close()
    assert not left_behind() and time.perf_counter() - start < 3
    list(micro_batches(dataset, order, B, iter(range(3)), seed=1, workers=workers))
    assert not left_behind()  # nor does the end of the numbers
    broken = micro_batches(dataset, order, B, iter([0, -1]), seed=1, workers=workers)
    with contextlib.suppress(Exception):
        list(broken)
    assert not left_behind()  # nor does a failure


def test_signals_for_the_rank_do_not_end_its_reading_processes(dataset, left_behind, children):
    order = Order(dataset.counts, seed=1)
    with contextlib.closing(micro_batches(dataset, order, B, schedule(0, M, 0, 1), seed=1, workers=2)) as batches:
        for _ in range(8):  # by now all of them are at work
            next(batches)
        workers = children()
        assert len(workers) == 2
        for child, number in itertools.product(
            workers, (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
        ):
            os.kill(child.pid, number)
        assert [next(batches).number for _ in range(12)] == list(range(8, 20))
    assert not left_behind()


def spoil(dataset, monkeypatch, bad):
    """From now on the images `bad` cannot be decoded."""
    image = dataset.image

    def sometimes(i):
        if i in bad:
            raise BadImageError(f"sample {dataset.key(i)} of a shard is not a readable image (spoilt)")
        return image(i)

    monkeypatch.setattr(dataset, "image", sometimes)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_replaced_by_the_next_in_the_order_and_named(dataset, monkeypatch, workers):
    ids = Order(dataset.counts, seed=1, block_shards=2).ids(0, 40)
    clean = take(dataset, range(8), 8)
    spoil(dataset, monkeypatch, {int(ids[5]), int(ids[6])})
    batches = take(dataset, range(8), 8, workers=workers, bad_samples=3)
    assert batches[1].ids.tolist() == [ids[4], ids[7], ids[7], ids[7]]  # places 5 and 6 both end at position 7
    assert [key for key, _ in batches[1].replaced] == [dataset.key(int(ids[i])) for i in (5, 6, 6)]
    assert [digest(b) for b in batches[2:]] == [digest(b) for b in clean[2:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_bad_images_than_allowed_end_the_run_with_a_sentence(dataset, monkeypatch, workers, left_behind):
    ids = Order(dataset.counts, seed=1, block_shards=2).ids(0, 40)
    spoil(dataset, monkeypatch, {int(ids[5]), int(ids[20])})
    assert len(take(dataset, range(8), 8, workers=workers, bad_samples=2)) == 8
    with pytest.raises(
        DataError, match=rf"^sample {dataset.key(int(ids[20]))} .*spoilt\) \(2 such images by now, 1 allowed\)$"
    ):
        take(dataset, range(8), 8, workers=workers, bad_samples=1)
    assert not left_behind()


def test_nothing_but_bad_images_is_not_an_endless_search(dataset, monkeypatch):
    spoil(dataset, monkeypatch, set(range(50)))
    with pytest.raises(DataError, match="100 images in a row cannot be decoded; the last: sample"):
        take(dataset, [0], 1, bad_samples=10**9)


def test_the_order_must_be_of_this_data_set(dataset):
    with pytest.raises(DataError, match=r"the order is one of 7 samples, but .* has 50"):
        micro_batches(dataset, Order([7], seed=0), B, iter([0]), seed=0)


def test_reads_ahead_while_the_caller_computes(dataset, monkeypatch):
    reads = []
    image = dataset.image
    monkeypatch.setattr(dataset, "image", lambda i: (reads.append(i), image(i))[1])
    order = Order(dataset.counts, seed=1)
    with contextlib.closing(micro_batches(dataset, order, B, itertools.count(), seed=1)) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(reads) < B * (1 + reader.AHEAD) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(reads) == B * (1 + reader.AHEAD)  # so far and no further


def test_a_killed_reading_process_is_one_sentence(dataset, children):
    batches = micro_batches(dataset, Order(dataset.counts, seed=0), 5, itertools.count(), seed=0, workers=1)
    next(batches)
    (worker,) = children()
    worker.kill()
    with pytest.raises(
        DataError, match=r"^a reading process died \(.*\); if the node ran out of memory, lower data.workers$"
    ):
        for _ in batches:
            pass


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionError])
def test_an_error_of_the_code_in_a_reading_process_is_not_taken_for_its_death(dataset, monkeypatch, kind):
    def image(i):
        raise kind("a fault of the code")

    monkeypatch.setattr(dataset, "image", image)
    with pytest.raises(RuntimeError, match=f"^{kind.__name__}: a fault of the code\n") as caught:
        take(dataset, [0], 1, workers=1)
    assert "in image" in caught.value.__notes__[0]  # the traceback of the process, for --debug
