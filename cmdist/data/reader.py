"""Micro-batches of a run, from any position, read ahead in the background."""

import atexit
import contextlib
import itertools
import mmap
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from cmdist import seeding
from cmdist.data.decode import BadImageError
from cmdist.data.images import ShardedImages
from cmdist.data.order import Order
from cmdist.errors import CmdistError, DataError

AHEAD = 4  # micro-batches that the thread reads ahead; each process reads two ahead


@dataclass(frozen=True)
class MicroBatch:
    """Micro-batch `number` of a run; what it holds depends on nothing but the data set, the seed and this number."""

    number: int
    ids: Tensor  # (B,) int64
    images: Tensor  # (B, C, H, W) float32 in [-1, 1]
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
    """Micro-batch g = next(numbers) holds the samples at global positions g * B ... g * B + B - 1, mirrored left-right by chance if `flip`.

    Reads ahead in one thread (`workers` 0) or in processes; closing the iterator ends them. An image that cannot be decoded is replaced
    by the next one in the order that can. Raises DataError for damaged shards, and once more than `bad_samples` images were replaced.
    """
    if len(dataset) != order.samples:
        raise DataError(f"the order is one of {order.samples} samples, but {dataset.url} has {len(dataset)}")
    read = _Read(dataset, order, micro_batch, seed, flip)
    return _within_budget(_in_processes(read, numbers, workers) if workers else _in_thread(read, numbers), bad_samples)


@dataclass(frozen=True)
class _Pixels:
    """A micro-batch as it comes from a reading process: a quarter of the bytes of floats, and one tensor alone.

    For every tensor this process would call the other one back; arrays come with the message.
    """

    number: int
    ids: NDArray[np.int64]
    images: Tensor  # (B, H, W, C) uint8, as decoders give them
    labels: NDArray[np.int64] | None
    replaced: list[tuple[str, str]]


@dataclass(frozen=True)
class _Read:
    dataset: ShardedImages
    order: Order
    micro_batch: int
    seed: int
    flip: bool

    def __call__(self, number: int) -> _Pixels:
        first, size, read = number * self.micro_batch, self.dataset.image_size, self.dataset.image
        ids = self.order.ids(first, self.micro_batch)
        self.dataset.expect(self.order.shards(first))
        pixels = np.empty((self.micro_batch, size, size, self.dataset.channels), np.uint8)
        replaced: list[tuple[str, str]] = []
        for place, i in enumerate(ids.tolist()):
            try:
                pixels[place] = read(i)
            except BadImageError:
                ids[place], pixels[place] = self._sample(i, first + place, replaced)
        images = torch.from_numpy(pixels)
        if self.flip:
            for place in flips(self.seed, number, self.micro_batch).nonzero()[0].tolist():
                images[place] = images[place].flip(1)  # numpy's copy of a reversed axis takes twenty times as long
        labels = self.dataset.labels(ids).numpy() if self.dataset.labelled else None
        return _Pixels(number, ids, images, labels, replaced)

    def __getitem__(self, number: int) -> "_Pixels | CmdistError":  # in a reading process: DataLoader would turn an error into a traceback
        try:
            return self(number)
        except CmdistError as error:
            return error

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


def _within_budget(batches: Iterator[_Pixels], bad_samples: int) -> Generator[MicroBatch, None, None]:
    total = 0
    try:
        for batch in batches:
            total += len(batch.replaced)
            if total > bad_samples:
                raise DataError(f"{batch.replaced[-1][1]} ({total} such images by now, {bad_samples} allowed)")
            # to (B, C, H, W) here, in one pass: a strided copy of each image would cost the reading process more
            images = batch.images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)
            labels = None if batch.labels is None else torch.from_numpy(batch.labels)
            yield MicroBatch(batch.number, torch.from_numpy(batch.ids), images, labels, batch.replaced)
    finally:
        batches.close()  # type: ignore[attr-defined]


def _in_thread(read: _Read, numbers: Iterator[int]) -> Iterator[_Pixels]:
    with ThreadPoolExecutor(1, "reader") as pool:
        try:
            pending = deque(pool.submit(read, number) for number in itertools.islice(numbers, AHEAD))
            while pending:
                batch = pending.popleft().result()
                pending.extend(pool.submit(read, number) for number in itertools.islice(numbers, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            read.dataset.close()


def _in_processes(read: _Read, numbers: Iterator[int], workers: int) -> Iterator[_Pixels]:
    read.dataset.close()  # a shard that is open here would be locked here for as long as the run lasts
    closing = mmap.mmap(-1, 1)  # shared with the processes
    loader: DataLoader[Any] = DataLoader(
        read,  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_Steadfast(closing),
        multiprocessing_context="fork",  # any other leaves a helper process behind and imports the main script again
    )

    batches = iter(loader)

    def end() -> None:
        closing[0] = 1
        with contextlib.suppress(RuntimeError):  # of torch's handler of SIGCHLD, which names a process that was killed: that is known here
            batches._shutdown_workers()  # type: ignore[attr-defined]  # what its __del__ does, but now

    atexit.register(end)  # for who leaves without closing; before multiprocessing's own handler, which waits for the processes
    try:
        for batch in batches:
            if isinstance(batch, CmdistError):
                raise batch
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: it died while it handed over a micro-batch
        text = str(error)
        if text.startswith("Caught ") or (isinstance(error, RuntimeError) and "DataLoader worker" not in text):
            raise  # an error of the code, in the process (torch's wording) or here
        raise DataError(
            f"a reading process died ({' '.join(text.split())[:160]}); if the node ran out of memory, lower data.workers"
        ) from error
    finally:
        atexit.unregister(end)
        end()


def _as_it_is(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class _Steadfast:
    """Reading processes outlive the signals that ask a run to stop: a scheduler sends them to every process, and only the rank decides."""

    closing: mmap.mmap

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self.closing[0]:
            os._exit(0)
