"""What a rank has to save, and how it is dealt out over files and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves, in host memory: its slices of the vectors from `start` on, and of the averages."""

    start: int
    vectors: dict[str, Tensor]
    averages: dict[float, Tensor]
    state: dict[str, Any]  # equal on all ranks


def owners(local_ranks: Sequence[int]) -> list[int]:
    """The ranks in the order in which they are given averages to write: the first of each node, then the second ...

    `local_ranks` are those of all ranks. So the averages lie in the memory, and go through the network, of many nodes.
    """
    return sorted(range(len(local_ranks)), key=lambda rank: (local_ranks[rank], rank))


def of_slices(kinds: list[str], start: int, numel: int) -> tuple[list[tuple[str, tuple[int, ...]]], dict[str, str]]:
    """What the header of a slice file says: its tensors, and its metadata."""
    return [(kind, (numel,)) for kind in kinds], {"start": str(start)}
