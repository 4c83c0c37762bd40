"""What one rank reads for all: asked of the store once in a run, or once on each node, and told to the others.

Small answers and weights go over the control group, from rank 0 along a tree. So what a start asks of the store and of
the shared disk does not grow with the number of ranks.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cmdist.errors import CmdistError
from cmdist.system.distributed import PeerFailed, World, gather

T = TypeVar("T")


def once(world: World, look: Callable[[], T]) -> T:
    """`look()` of rank 0, on every rank; all ranks must call.

    Its CmdistError is raised on all of them; any other error on rank 0, and PeerFailed on the others.
    """
    if world.control is None:
        return look()
    value, error = _tried(look) if world.first else (None, None)
    value, failed = from_first((value, _told(world, error)), world.control)
    _raise(error, failed)
    return value  # type: ignore[no-any-return]


def tensors_once(world: World, read: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name in host memory, which rank 0 reads; all ranks must call. Raises as `once`."""
    tensors: dict[str, Tensor] = {}

    def look() -> list[tuple[str, torch.Size, torch.dtype]]:
        tensors.update(read())
        return [(name, value.shape, value.dtype) for name, value in tensors.items()]

    listed = once(world, look)
    if world.control is None:
        return tensors
    sent = {}
    for name, shape, kind in listed:
        sent[name] = tensors[name].contiguous() if world.first else torch.empty(shape, dtype=kind)
        if sent[name].numel():  # as bytes, since gloo does not know all kinds of numbers
            dist.broadcast(sent[name].view(-1).view(torch.uint8), src=0, group=world.control)
    return sent


def on_each_rank(world: World, act: Callable[[], object]) -> None:
    """`act()`; what it raises on one rank, all raise, as in `once`. All ranks must call."""
    _, error = _tried(act)
    for failed in gather(_told(world, error), world.control):
        _raise(error, failed)


def on_each_node(world: World, act: Callable[[], object]) -> None:
    """`act()` on the first rank of each node, else as `on_each_rank`."""
    on_each_rank(world, act if world.local_rank == 0 or world.control is None else lambda: None)


def to_first(value: Any, group: Any) -> list[Any]:
    """`value` of every rank of a gloo group, in order of rank, on rank 0; [] on the others. All ranks must call."""
    if group is None:
        return [value]
    first = dist.get_rank(group) == 0
    values: list[Any] = [None] * dist.get_world_size(group) if first else []
    dist.gather_object(value, values if first else None, dst=0, group=group)
    return values


def from_first(value: Any, group: Any) -> Any:
    """Rank 0's value, on every rank of a gloo group of all ranks. All ranks must call."""
    if group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def _tried(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _told(world: World, error: Exception | None) -> tuple[type[CmdistError], str] | None:
    """What the other ranks raise for an error of this one."""
    if error is None:
        return None
    if isinstance(error, CmdistError):
        return type(error), str(error)
    return PeerFailed, f"rank {world.rank}: {type(error).__name__}: {error}"


def _raise(own: Exception | None, failed: tuple[type[CmdistError], str] | None) -> None:
    if own is not None:
        raise own
    if failed is not None:
        kind, sentence = failed
        raise kind(sentence)
