"""What the ranks of 128 nodes fetch from a store, with the real order, reader and cache."""

import contextlib
import itertools
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash

from cmdist.data.cache import Cache, checksum_of
from cmdist.data.images import ShardedImages
from cmdist.data.order import Order, schedule
from cmdist.data.reader import micro_batches
from cmdist.system import storage

NODE = 8  # ranks of a node
SHARDS, BLOCK = 12, 4  # of all, and of a block
FEW, MANY = 2048, 16384  # samples of a shard: 8 and 64 steps for each block, if 1,024 ranks take one sample each
SEED = 5


@pytest.fixture(params=[FEW])
def remote(request, tmp_path, monkeypatch):
    """Samples of each shard; what opens a data set of one-pixel images in a store; downloads by shard; all pixels."""
    each, shards = request.param, []
    pixels = np.random.default_rng(0).integers(0, 256, (SHARDS, each), np.uint8)
    for number in range(SHARDS):
        path = tmp_path / f"shard-{number}.tar"
        path.write_bytes(pixels[number].tobytes())
        shards.append({"name": path.name, "size": each, "checksum": checksum_of(path), "count": each})
    index = {"image_size": 1, "channels": 1, "classes": [], "labelled": False, "encoding": "raw", "shards": shards}
    by_value = np.array([xxhash.xxh3_64_intdigest(bytes([value])) for value in range(256)], np.uint64)
    samples = {
        "keys": np.zeros(SHARDS * each, "S1"),
        "labels": np.zeros(SHARDS * each, np.int64),
        "offsets": np.tile(np.arange(each), SHARDS),
        "lengths": np.ones(SHARDS * each, np.int64),
        "checksums": by_value[pixels.reshape(-1)],
    }
    fetched = Counter()

    def download(url, target):
        fetched[int(url.rpartition("-")[2].removesuffix(".tar"))] += 1
        shutil.copy(tmp_path / url.rpartition("/")[2], target)

    monkeypatch.setattr(storage, "download", download)
    return (
        each,
        lambda cache: ShardedImages("memory://many", index, samples, cache, memory=0),
        fetched,
        pixels.reshape(-1),
    )


def read(remote, folder: Path, node: int, world: int, steps: int, limit: int | None = None):
    """(Downloads by shard, shards of the samples) of one node, whose ranks take their micro-batches step by step."""
    each, opened, fetched, pixels = remote
    fetched.clear()
    used = set()
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(node * NODE, (node + 1) * NODE):
            data = opened(Cache(folder, limit))
            numbers = itertools.islice(schedule(0, world, rank, world), steps)
            batches = micro_batches(data, Order(data.counts, SEED, BLOCK), 1, numbers, SEED)
            ranks.append(stack.enter_context(contextlib.closing(batches)))
        for step in range(steps):
            for place, batches in enumerate(ranks):
                batch = next(batches)
                assert batch.number == step * world + node * NODE + place
                assert batch.images.item() == pixels[batch.ids.item()]
                used.add(batch.ids.item() // each)
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join()
    return Counter(fetched), used


def blocks_of(samples: int, each: int) -> list[list[int]]:
    """The blocks that hold the first so many samples, and the one behind, which is fetched ahead."""
    block = BLOCK * each
    shards = Order([each] * SHARDS, SEED, BLOCK).ids(0, samples + block) // each
    return [sorted(set(shards[start : start + block].tolist())) for start in range(0, samples + block, block)]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_each_of_128_nodes_fetches_each_shard_once(remote, tmp_path, every):
    """As few as can be: samples are shuffled inside blocks, so every node has samples of every shard."""
    world, epoch = 1024, SHARDS * FEW // 1024
    for node in {*range(0, world // NODE, every), world // NODE - 1}:
        fetched, used = read(remote, tmp_path / "cache", node, world, epoch)
        assert used == set(range(SHARDS)), "every node needs every shard"
        assert fetched == dict.fromkeys(range(SHARDS), 1), f"node {node}"
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("remote", [MANY], indirect=True)
@pytest.mark.parametrize("node", [0, 127])
def test_a_cache_of_two_blocks_and_a_shard_fetches_a_shard_at_most_once_for_each_block_that_has_it(
    remote, tmp_path, node
):
    """A rank opens the shards of a block long before any other leaves it. With FEW samples a rank meets some shard of a
    block only at the end, when others may have had it removed, and it is fetched once more.
    """
    world, steps = 1024, 2 * SHARDS * MANY // 1024
    limit = (2 * BLOCK + 1) * MANY
    fetched, _ = read(remote, tmp_path / "cache", node, world, steps, limit)
    most = Counter(itertools.chain(*blocks_of(steps * world, MANY)))
    assert fetched.keys() == most.keys() and all(fetched[shard] <= most[shard] for shard in most), (fetched, most)
    again, _ = read(remote, tmp_path / "whole", node, world, steps)
    assert again == dict.fromkeys(range(SHARDS), 1), "with room for all, later epochs fetch nothing"


def test_what_a_node_fetches_for_the_same_samples_does_not_grow_with_the_world(remote, tmp_path):
    """8 to 1,024 ranks that read the same epoch; the node's own part of the samples becomes smaller, its bytes don't
    become more.
    """
    by_world = {}
    for world in (8, 64, 1024):
        fetched, _ = read(remote, tmp_path / str(world), 0, world, SHARDS * FEW // world)
        by_world[world] = sum(fetched.values()) * FEW
    assert set(by_world.values()) == {SHARDS * FEW}, by_world
