"""A long measurement in numbered parts: any rank makes any of them, a kill loses only those under way, and they are
read back in order.

What a part holds depends on its number alone, so that neither ranks nor kills can change a figure.
"""

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmdist.errors import DataError
from cmdist.system import distributed, storage
from cmdist.system.typed import arrays_of

Arrays = Mapping[str, NDArray[Any]]
AHEAD = 2  # parts that are read before they are asked for


@dataclass(frozen=True)
class Parts:
    """`count` files below `folder`, whose name tells what they are of."""

    folder: str
    count: int

    def complete(self, make: Callable[[int], Arrays], world: distributed.World, tell: Callable[[int], object]) -> None:
        """Make the parts that are not there, shared among the ranks; all ranks must call.
        `tell` is told those that are, shared, too.
        """
        listed = set(storage.names(self.folder)) if world.first else set()
        there = distributed.gather({part for part in range(self.count) if self._name(part) in listed}, world.control)[0]
        missing = [part for part in range(self.count) if part not in there]
        for part in sorted(there)[world.rank :: world.size]:
            tell(part)
        with ThreadPoolExecutor(1) as writer:  # a store may be slow; the next part is made meanwhile
            written: Future[None] | None = None
            for part in missing[world.rank :: world.size]:
                arrays = make(part)
                if written:
                    written.result()
                written = writer.submit(self._write, part, arrays)
            if written:
                written.result()
        distributed.gather(None, world.control)

    def read(self) -> Iterator[Arrays]:
        """All parts, in order, three in memory at a time. Raises DataError."""
        with ThreadPoolExecutor(AHEAD) as reader:
            coming = deque(reader.submit(self._read, part) for part in range(min(AHEAD, self.count)))
            for following in range(AHEAD, AHEAD + self.count):
                content = coming.popleft().result()
                if following < self.count:
                    coming.append(reader.submit(self._read, following))
                yield content

    def _write(self, part: int, arrays: Arrays) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub knows but its own options
        storage.write(storage.join(self.folder, self._name(part)), buffer.getvalue())

    def _read(self, part: int) -> Arrays:
        url = storage.join(self.folder, self._name(part))
        remedy = "remove it, and the same command makes it again"
        try:
            return arrays_of(storage.read(url), url, DataError, remedy)
        except FileNotFoundError as error:
            raise DataError(f"{url} is missing; {remedy.removeprefix('remove it, and ')}") from error

    def remove(self) -> None:
        """All of them, once they are no longer needed."""
        storage.remove(self.folder)

    @staticmethod
    def _name(part: int) -> str:
        return f"part-{part:06d}.npz"
