"""The canonical vector: all trainable parameters end to end, in the module's order.

Everything that a run saves per weight (master, moments, averages, target) is such a vector, cut into one slice for each
rank. Slices are addressed by their place in the vector, so a run may come back on any number of ranks and any ZeRO
stage.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmdist.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the parameters in the vector of `total` numbers."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """The layout of a module's trainable parameters."""
        prefix = "net." if isinstance(module, Trained) else ""
        return cls.make(
            (name.removeprefix(prefix), tuple(p.shape)) for name, p in module.named_parameters() if p.requires_grad
        )

    @classmethod
    def make(cls, entries: Iterable[tuple[str, Sequence[int]]]) -> "Layout":
        """From (name, shape) pairs in order."""
        names, shapes, starts, total = [], [], [], 0
        for name, shape in entries:
            names.append(name)
            shapes.append(tuple(shape))
            starts.append(total)
            total += math.prod(shape)
        return cls(tuple(names), tuple(shapes), tuple(starts), total)

    def difference(self, other: "Layout") -> str:
        """The first tensor that is not the same in this one (there) and another (here), in words; "" if none."""
        if self == other:
            return ""
        here = dict(zip(other.names, other.shapes, strict=True))
        there = dict(zip(self.names, self.shapes, strict=True))
        for name in [*there, *here]:
            if there.get(name) != here.get(name):
                shapes = [str(list(each[name])) if name in each else "missing" for each in (there, here)]
                return f"{name} is {shapes[0]} there and {shapes[1]} here ({self.total:,} and {other.total:,} weights)"
        return "its weights are the same in another order"


class Trained(nn.Module):
    """A network, and what is trained beside it for the loss alone, e.g. a weighting head: one vector for both.

    Called, it is the network; its weights keep the network's names, and `extra` stands before the names of the others.
    """

    def __init__(self, net: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.net, self.extra = net, extra

    def forward(self, *inputs: Any, **told: Any) -> Tensor:
        """The network's output."""
        return self.net(*inputs, **told)  # type: ignore[no-any-return]


def network_of(module: nn.Module) -> nn.Module:
    """The network of what is trained."""
    return module.net if isinstance(module, Trained) else module


def weights_of_network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to the network among weights by name, as `Layout` names them."""
    return {name: values for name, values in weights.items() if not name.startswith("extra.")}


def refuse_untrained(module: nn.Module) -> None:
    """Raise ConfigError if the module has a state that no checkpoint would hold: a saved buffer, a frozen parameter."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    if untrained := [name for name in module.state_dict() if name not in trained]:
        raise ConfigError(
            f"'{untrained[0]}' of the network is no trained parameter, and checkpoints hold nothing else: train it, or "
            "make it a buffer that is not persistent"
        )


@dataclass(frozen=True)
class Piece:
    """A flat view of live memory that holds the vector's numbers from `start` on."""

    start: int
    tensor: Tensor

    @property
    def stop(self) -> int:
        """One past the last number."""
        return self.start + self.tensor.numel()


def overlap(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """The parts of `pieces` that lie in [start, stop)."""
    parts = []
    for piece in pieces:
        low, high = max(piece.start, start), min(piece.stop, stop)
        if low < high:
            parts.append(Piece(low, piece.tensor[low - piece.start : high - piece.start]))
    return parts


def whole(layout: Layout, tensors: Iterable[Tensor]) -> list[Piece]:
    """One piece for each parameter-shaped tensor, in the layout's order."""
    return [Piece(start, tensor.view(-1)) for start, tensor in zip(layout.starts, tensors, strict=True)]


def parameters(module: nn.Module) -> list[Tensor]:
    """The trainable parameters' memory, in the layout's order."""
    return [p.data for p in module.parameters() if p.requires_grad]


def load_slice(pieces: Sequence[Piece], start: int, values: Tensor) -> None:
    """Write `values`, the vector from `start` on, into the pieces that it covers."""
    for piece in overlap(pieces, start, start + values.numel()):
        piece.tensor.copy_(values[piece.start - start : piece.stop - start])


def read_slice(pieces: Sequence[Piece], device: torch.device | str) -> Tensor:
    """A copy of adjoining pieces as one vector on `device`; an empty one for no pieces."""
    if not pieces:
        return torch.empty(0, device=device)
    values = torch.empty(sum(piece.tensor.numel() for piece in pieces), device=device)
    copy_slice(pieces, values)
    return values


def copy_slice(pieces: Sequence[Piece], into: Tensor, non_blocking: bool = False) -> None:
    """Copy adjoining pieces into one vector, (sum of their lengths,); `non_blocking` as in torch's copy_."""
    place = 0
    for piece in pieces:
        into[place : place + piece.tensor.numel()].copy_(piece.tensor, non_blocking=non_blocking)
        place += piece.tensor.numel()
    assert place == into.numel()
