"""Objective."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cmdist.core.curricula import Point
from cmdist.core.noise import Denoise


@dataclass(frozen=True)
class Networks:
    """The networks."""

    student: Denoise
    target: Denoise | None = None
    teacher: Denoise | None = None
    bare_student: Denoise | None = None


@dataclass(frozen=True)
class Draw:
    """All the randomness of a micro-batch."""

    sigma: Tensor
    sigma_next: Tensor | None
    noise: Tensor
    dropout_seed: int


class Objective(Protocol):
    """What is minimised."""

    def draw(self, shape: Sequence[int], point: Point, generator: torch.Generator) -> Draw:
        """All randomness."""

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """(B,)."""


@contextmanager
def same_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Same masks."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
