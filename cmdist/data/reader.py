"""Micro-batches of a run, from any position, read ahead in the background."""

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmdist import seeding
from cmdist.data.decode import BadImageError
from cmdist.data.images import ShardedImages
from cmdist.data.order import Order
from cmdist.data.read_ahead import Pixels, filled
from cmdist.errors import DataError

AHEAD = 4  # micro-batches that the thread reads ahead


@dataclass(frozen=True)
class MicroBatch:
    """Micro-batch `number` of a run; what it holds depends on nothing but the data set, the seed and this number."""

    number: int
    ids: Tensor  # (B,) int64
    images: Tensor  # (B, C, H, W) uint8: a quarter of the bytes for a device, which makes floats of them
    labels: Tensor | None  # (B,) int64
    replaced: list[tuple[str, str]]  # (sample's key, what was wrong) for each bad sample that another one stands in for


def micro_batches(
    dataset: ShardedImages,
    order: Order,
    micro_batch: int,
    numbers: Iterator[int],
    seed: int,
    flip: bool = False,
    workers: int = 0,
    bad_samples: int = 0,
) -> Generator[MicroBatch, None, None]:
    """Micro-batch g = next(numbers) holds the samples at global positions g * B ... g * B + B - 1, mirrored left-right
    by chance if `flip`.

    Reads ahead in one thread (`workers` 0) or in processes; closing the iterator ends them. An image that cannot be
    decoded is replaced by the next one in the order that can. Raises DataError for damaged shards, and once more than
    `bad_samples` images were replaced.
    """
    if len(dataset) != order.samples:
        raise DataError(f"the order is one of {order.samples} samples, but {dataset.url} has {len(dataset)}")
    read = _Read(dataset, order, micro_batch, seed, flip)
    return _finished(read, _in_processes(read, numbers, workers) if workers else _in_thread(read, numbers), bad_samples)


@dataclass(frozen=True)
class _Found:
    """What was read for a micro-batch, beside its pixels."""

    number: int
    ids: NDArray[np.int64]
    replaced: list[tuple[str, str]]


@dataclass(frozen=True)
class _Read:
    dataset: ShardedImages
    order: Order
    micro_batch: int
    seed: int
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.micro_batch, self.dataset.image_size, self.dataset.image_size, self.dataset.channels

    def __call__(self, number: int, pixels: Pixels) -> _Found:
        """Fills `pixels` (B, H, W, C), which is how decoders give them."""
        first, read = number * self.micro_batch, self.dataset.image
        ids = self.order.ids(first, self.micro_batch)
        self.dataset.expect(self.order.blocks(first))
        replaced: list[tuple[str, str]] = []
        for place, i in enumerate(ids.tolist()):
            try:
                pixels[place] = read(i)
            except BadImageError:
                ids[place], pixels[place] = self._sample(i, first + place, replaced)
        return _Found(number, ids, replaced)

    def finish(self, sample: _Found, pixels: Pixels) -> MicroBatch:
        """The micro-batch of pixels (B, H, W, C), as decoders give them; they are copied.

        All but decoding is done here, outside of the reading processes, for a micro-batch at a time, and mirroring
        where it takes least: in bytes, whose rows lie together.
        """
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
        for place in flips(self.seed, sample.number, self.micro_batch).nonzero()[0].tolist() if self.flip else []:
            images[place] = images[place].flip(2)
        labels = self.dataset.labels(sample.ids) if self.dataset.labelled else None
        return MicroBatch(sample.number, torch.from_numpy(sample.ids), images, labels, sample.replaced)

    def new(self, number: int) -> tuple[_Found, Pixels]:
        """With pixels of its own."""
        pixels = np.empty(self.shape, np.uint8)
        return self(number, pixels), pixels

    def _sample(self, i: int, position: int, replaced: list[tuple[str, str]]) -> tuple[int, NDArray[np.uint8]]:
        for later in range(1, 101):
            try:
                return i, self.dataset.image(i)
            except BadImageError as error:
                replaced.append((self.dataset.key(i), str(error)))
                i = int(self.order.ids(position + later, 1)[0])
        raise DataError(f"100 images in a row cannot be decoded; the last: {replaced[-1][1]}")


def flips(seed: int, number: int, n: int) -> NDArray[np.bool_]:
    """Whether each of the `n` places of micro-batch `number` is mirrored."""
    words = seeding.numpy_generator(seed, "flip", number).bit_generator.random_raw(n)
    return (words >> np.uint64(63)).astype(bool)


def _finished(
    read: _Read, batches: Generator[tuple[_Found, Pixels], None, None], bad_samples: int
) -> Generator[MicroBatch, None, None]:
    total = 0
    with contextlib.closing(batches):
        for sample, pixels in batches:
            total += len(sample.replaced)
            if total > bad_samples:
                raise DataError(f"{sample.replaced[-1][1]} ({total} such images by now, {bad_samples} allowed)")
            yield read.finish(sample, pixels)


def _in_thread(read: _Read, numbers: Iterator[int]) -> Generator[tuple[_Found, Pixels], None, None]:
    with ThreadPoolExecutor(1, "reader") as pool:
        try:
            pending = deque(pool.submit(read.new, number) for number in itertools.islice(numbers, AHEAD))
            while pending:
                batch = pending.popleft().result()
                pending.extend(pool.submit(read.new, number) for number in itertools.islice(numbers, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            read.dataset.close()


def _in_processes(read: _Read, numbers: Iterator[int], workers: int) -> Generator[tuple[_Found, Pixels], None, None]:
    read.dataset.close()  # a shard that is open here would be locked here for as long as the run lasts
    yield from filled(read, numbers, read.shape, workers)
