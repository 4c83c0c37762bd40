"""A finished data set, read sample by sample: one pread and one decode each, at offsets that the index knows."""

import contextlib
import hashlib
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from cmdist.data import index as indices
from cmdist.data.cache import Cache, NoRoomError, Remote, default_folder
from cmdist.data.decode import BadImageError, decode
from cmdist.errors import DataError
from cmdist.system import sharing, storage
from cmdist.system.distributed import World

OPEN_FILES = 128  # shards that a process keeps open
MEMORY = 64 * 2**20  # bytes: a data set that is no larger when decoded is decoded once and kept, in each process

Ids = NDArray[np.int64] | Tensor | Sequence[int]
Blocks = list[list[int]]  # shards of each


class ShardedImages:
    """The images and labels of a data set, by sample id 0 ... len - 1 (through the shards as they stand in the index).

    Each image's bytes are compared with their checksum in the index whenever they are read, so damage is found wherever
    it happens and no shard has to be read whole for it. Safe to use from several threads and after a fork.
    """

    def __init__(
        self,
        url: str,
        index: dict[str, Any],
        samples: dict[str, NDArray[Any]],
        cache: Cache | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.url, self.index = url, index
        self.image_size, self.channels = int(index["image_size"]), int(index["channels"])
        self.classes: tuple[str, ...] = tuple(index["classes"])
        self.labelled = bool(index["labelled"])
        self._raw = index.get("encoding") == "raw"
        self.counts: tuple[int, ...] = tuple(shard["count"] for shard in index["shards"])
        self._keys, self._labels = samples["keys"], samples["labels"]
        self._places = np.stack([samples["offsets"], samples["lengths"], samples["checksums"].view(np.int64)], axis=1)
        self._ends = np.cumsum(self.counts).tolist()
        self._local = storage.local_path(url)
        self._cache = cache or Cache(default_folder())
        self._files: dict[int, _File] = {}
        self._expected: Blocks = []
        self._fetcher: threading.Thread | None = None
        shape = (len(self), self.image_size, self.image_size, self.channels)
        small = int(np.prod(shape, dtype=np.int64)) <= memory
        self._kept = np.empty(shape, np.uint8) if small else None
        self._is_kept = np.zeros(len(self), bool)

    @property
    def index_hash(self) -> str:
        """The identity of the data set: sha256 of its index without what changes no sample (name, extractor, who made
        it of what).
        """
        return hashlib.sha256(indices.identity_text(self.index).encode()).hexdigest()

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The classes that have images, if some have none; else none are named."""
        labels = np.unique(self._labels).tolist() if self.labelled else []
        return tuple(labels) if len(labels) < len(self.classes) else ()

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """The name of a sample in its shard."""
        return bytes(self._keys[i]).decode(errors="backslashreplace")

    def image(self, i: int) -> NDArray[np.uint8]:
        """Pixels (H, W, C) of one sample, not to be written to.

        Raises BadImageError if its bytes are those of the index but cannot be decoded, DataError if its shard is
        missing or damaged.
        """
        if self._kept is None:
            return self._read(i)
        if not self._is_kept[i]:
            self._kept[i] = self._read(i)
            self._is_kept[i] = True
        kept: NDArray[np.uint8] = self._kept[i]
        return kept

    def _read(self, i: int) -> NDArray[np.uint8]:
        shard = bisect_right(self._ends, i)
        offset, length, checksum = self._places[i].tolist()
        data = os.pread(self._file(shard).number, length, offset)
        if len(data) != length:
            raise DataError(
                f"shard {self._shard_url(shard)} is truncated: it ends before byte {offset + length}, "
                "which the index knows"
            )
        if xxhash.xxh3_64_intdigest(data) != checksum & 0xFFFFFFFFFFFFFFFF:
            raise DataError(
                f"shard {self._shard_url(shard)} is corrupt: the bytes of sample {self.key(i)} are not "
                "those of the index"
            )
        try:
            return decode(data, self.image_size, self.channels, self._raw)
        except DataError as error:
            raise type(error)(f"sample {self.key(i)} of shard {self._shard_url(shard)} {error}") from error

    def images(self, ids: Ids) -> Tensor:
        """Images uint8 (n, C, H, W). Raises as `image`."""
        numbers = np.asarray(ids, np.int64).tolist()
        self.expect([list(dict.fromkeys(bisect_right(self._ends, i) for i in numbers))])
        pixels = np.empty((len(numbers), self.channels, self.image_size, self.image_size), np.uint8)
        for place, i in enumerate(numbers):
            pixels[place] = self.image(i).transpose(2, 0, 1)
        return torch.from_numpy(pixels)

    def labels(self, ids: Ids) -> Tensor:
        """Labels int64 (n,). Raises DataError for a data set without labels."""
        if not self.labelled:
            raise DataError(f"{self.url} has no labels")
        return torch.from_numpy(self._labels[np.asarray(ids, np.int64)])

    def expect(self, blocks: Blocks) -> None:
        """The shards of these blocks are read now and next, in this order:
        of a remote store they are fetched ahead, all others closed.

        To be called by the process that reads; local shards need nothing.
        """
        if self._local or blocks == self._expected:
            return
        self._expected = blocks
        for shard in [shard for shard in self._files if not any(shard in block for block in blocks)]:
            self._files.pop(shard, None)  # its lock goes with it, so that the cache may remove it
        # a daemon, since no process that ends is to wait for a download; the one before ends after the shard that it is
        # at
        self._fetcher = threading.Thread(
            target=self._fetch, args=(self._expected, self._fetcher), name="fetch", daemon=True
        )
        self._fetcher.start()

    def _fetch(self, blocks: Blocks, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # one download ahead at a time
        keep = {self._remote(shard).name for block in blocks for shard in block}
        for (
            block
        ) in blocks:  # the next one only once this one is there, since other processes fetch too, into the same room
            missing = block
            while missing and blocks is self._expected:
                with contextlib.suppress(NoRoomError):
                    missing = [
                        shard
                        for shard in missing
                        if blocks is self._expected and not self._cache.fetch(self._remote(shard), keep)
                    ]
                if missing:
                    time.sleep(
                        0.2
                    )  # until a shard of the block before is no longer read, or another process has fetched one

    def close(self) -> None:
        """Close the open shards and stop fetching; reading opens them again."""
        self._files.clear()
        self._expected = []

    def _shard_url(self, shard: int) -> str:
        return storage.join(self.url, self.index["shards"][shard]["name"])

    def _remote(self, shard: int) -> Remote:
        entry = self.index["shards"][shard]
        return Remote(self._shard_url(shard), entry["size"], entry["checksum"])

    def _file(self, shard: int) -> "_File":
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = _File(self._open(shard))
            while len(self._files) > OPEN_FILES:
                self._files.pop(next(iter(self._files)), None)
        return file

    def _open(self, shard: int) -> int:
        if self._local is None:
            return self._cache.open(self._remote(shard))
        try:
            return os.open(self._local / self.index["shards"][shard]["name"], os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DataError(f"shard {self._shard_url(shard)} is missing") from error


class _File:
    """A file descriptor that closes with its last user: another thread may drop it from the table while we read."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def open_dataset(
    url: str, cache: Cache | None = None, memory: int = MEMORY, world: World | None = None
) -> ShardedImages:
    """Open a prepared data set. `cache` keeps shards of a remote store (None: below the system's temporary folder,
    without a limit).

    A data set of at most `memory` bytes of pixels is kept decoded. All ranks of a `world` must call: the index is read
    once for all of them, and the shards are looked at once on each node.

    Raises DataError if there is none, if the index is damaged or of another format, or if a local shard is missing or
    has another size.
    """
    world = world or World()
    index, content = sharing.once(world, lambda: indices.read(url))
    samples = indices.samples(url, index, content)
    if storage.local_path(url):
        sharing.on_each_node(world, lambda: _check_shards(url, index))
    return ShardedImages(url, index, samples, cache, memory)


def _check_shards(url: str, index: dict[str, Any]) -> None:
    for shard in index["shards"]:
        _check_shard(storage.join(url, shard["name"]), shard["size"])


def _check_shard(url: str, size: int) -> None:
    try:
        length = storage.size(url)
    except FileNotFoundError as error:
        raise DataError(f"shard {url} is missing") from error
    if length != size:
        raise DataError(
            f"shard {url} is {'truncated' if length < size else 'not that of the index'}: {length} bytes, "
            f"the index says {size}"
        )


__all__ = ["BadImageError", "ShardedImages", "open_dataset"]
