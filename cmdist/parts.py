"""A long measurement in numbered parts: any rank makes any of them, a kill loses only those under way, and they are read back in order.

What a part holds depends on its number alone, so that neither ranks nor kills can change a figure.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmdist import distributed, storage
from cmdist.errors import DataError

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Parts:
    """`count` files below `folder`, whose name tells what they are of."""

    folder: str
    count: int

    def complete(self, make: Callable[[int], Arrays], world: distributed.World, found: Callable[[int], object]) -> None:
        """Make the parts that are not there, shared among the ranks; all ranks must call. `found` is told those that are, shared, too."""
        listed = set(storage.names(self.folder)) if world.first else set()
        there = distributed.gather({part for part in range(self.count) if self._name(part) in listed}, world.control)[0]
        missing = [part for part in range(self.count) if part not in there]
        for part in sorted(there)[world.rank :: world.size]:
            found(part)
        for part in missing[world.rank :: world.size]:
            buffer = io.BytesIO()
            np.savez(buffer, **make(part))  # type: ignore[arg-type]  # numpy's stub knows but its own options
            storage.write(storage.join(self.folder, self._name(part)), buffer.getvalue())
        distributed.gather(None, world.control)

    def read(self) -> Iterator[dict[str, NDArray[Any]]]:
        """All parts, in order, one in memory at a time. Raises DataError."""
        for part in range(self.count):
            url = storage.join(self.folder, self._name(part))
            try:
                with np.load(io.BytesIO(storage.read(url)), allow_pickle=False) as arrays:
                    content = {name: arrays[name] for name in arrays.files}
            except Exception as error:
                raise DataError(f"{url} is missing or damaged ({error}); remove it, and the same command makes it again") from error
            yield content

    def remove(self) -> None:
        """All of them, once they are no longer needed."""
        storage.remove(self.folder)

    @staticmethod
    def _name(part: int) -> str:
        return f"part-{part:06d}.npz"
