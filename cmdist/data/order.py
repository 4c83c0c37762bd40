"""Which sample stands at which global position: a pure function, so that a resume seeks and never replays.

In epoch e the shards are permuted, and samples are shuffled inside blocks of a few shards, so that few shards are in
use at a time. Global positions 0, 1, 2, ... run through epoch after epoch; each sample comes exactly once in each.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmdist import seeding
from cmdist.errors import DataError

Ids = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class _Epoch:
    shards: NDArray[np.int64]  # in this epoch's order
    bounds: NDArray[np.int64]  # (blocks + 1,): where in the epoch each block starts


class Order:
    """Sample ids in the order of a run:
    `counts` are samples per shard, and ids count through the shards as they stand in the index.
    """

    def __init__(self, counts: Sequence[int], seed: int, block_shards: int = 8) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.seed, self.block_shards = seed, block_shards
        self.samples = int(self.counts.sum())
        if self.samples == 0:
            raise DataError("the data set is empty: none of its shards has a sample")
        assert block_shards >= 1 and (self.counts >= 0).all()
        self._first = np.concatenate([[0], np.cumsum(self.counts)])  # id of each shard's first sample
        self._epochs: dict[int, _Epoch] = {}  # the latest few, only for speed
        self._blocks: dict[tuple[int, int], Ids] = {}

    def epoch(self, position: int) -> int:
        """The epoch that a global position falls into."""
        return position // self.samples

    def ids(self, start: int, n: int) -> Ids:
        """Ids (n,) of the samples at global positions start ...
        start + n - 1; takes the same time wherever `start` is.
        """
        parts: list[Ids] = []
        while n > 0:
            number, place = divmod(start, self.samples)
            epoch = self._epoch(number)
            block = int(np.searchsorted(epoch.bounds, place, side="right")) - 1
            part = self._block(number, block)[place - int(epoch.bounds[block]) :][:n]
            parts.append(part)
            start, n = start + len(part), n - len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def blocks(self, position: int, n: int = 2) -> list[list[int]]:
        """The shards of each of n blocks, from that at a global position on, in the order in which they come;
        each shard once.
        """
        blocks: list[list[int]] = []
        for _ in range(n):
            number, place = divmod(position, self.samples)
            epoch = self._epoch(number)
            block = int(np.searchsorted(epoch.bounds, place, side="right")) - 1
            shards = epoch.shards[block * self.block_shards :][: self.block_shards].tolist()
            blocks.append([shard for shard in shards if not any(shard in before for before in blocks)])
            position += int(epoch.bounds[block + 1]) - place
        return blocks

    def _epoch(self, number: int) -> _Epoch:
        if (known := self._epochs.get(number)) is not None:
            return known
        shards = permutation(len(self.counts), self.seed, "shards", number)
        starts = np.arange(0, len(shards), self.block_shards)
        bounds = np.concatenate([[0], np.cumsum(np.add.reduceat(self.counts[shards], starts))])
        return _remember(self._epochs, number, _Epoch(shards, bounds))

    def _block(self, number: int, block: int) -> Ids:
        key = (number, block)
        if (known := self._blocks.get(key)) is not None:
            return known
        shards = self._epoch(number).shards[block * self.block_shards :][: self.block_shards]
        ids = np.concatenate([np.arange(self._first[s], self._first[s + 1]) for s in shards])
        return _remember(self._blocks, key, ids[permutation(len(ids), self.seed, "block", number, block)])


def schedule(first_step: int, micro_batches: int, rank: int, world: int) -> Iterator[int]:
    """Without end, the micro-batch numbers g = step * M + m that one of `world` ranks computes:
    m = rank, rank + world, ... < M.
    """
    for step in itertools.count(first_step):
        for m in range(rank, micro_batches, world):
            yield step * micro_batches + m


def permutation(n: int, seed: int, *parts: seeding.Part) -> NDArray[np.int64]:
    """0 ... n - 1 (n,), shuffled."""
    # Sorting raw random words: numpy promises the words for ever, but not what Generator.permutation makes of them.
    words = seeding.numpy_generator(seed, *parts).bit_generator.random_raw(n)
    return np.argsort(words, kind="stable")


def _remember(known: dict[Any, T], key: Any, value: T) -> T:
    known[key] = value
    while len(known) > 4:
        known.pop(next(iter(known)), None)
    return value
