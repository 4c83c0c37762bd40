"""What an objective is: all randomness of a micro-batch in `draw`, and a deterministic loss for each image in
`loss`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cmdist.core.curricula import Point
from cmdist.core.noise import Denoise

_DROPOUT = 0x3B9D_51E7_A6C4_082F  # any fixed number: masks must not be made of the same random numbers as the noise


@dataclass(frozen=True)
class Networks:
    """What an objective may call. Only `student` is ever called with gradient."""

    student: Denoise
    bare_student: Denoise  # the same weights without the engine around them, for what must not go through it
    target: Denoise | None = None  # theta^-; None: mu = 0, the student itself without gradient
    teacher: Denoise | None = None  # phi, in evaluation mode; None: consistency training


@dataclass(frozen=True)
class Draw:
    """The random part of a micro-batch of B images."""

    sigma: Tensor  # (B,)
    sigma_next: Tensor  # (B,), nearer the data; equal to sigma where an objective has one noise level only
    noise: Tensor  # (B, C, H, W), unit normal
    dropout_seed: int


class Objective(Protocol):
    """What is minimised."""

    def draw(self, shape: Sequence[int], point: Point, generator: torch.Generator) -> Draw:
        """All randomness of a micro-batch of images (B, C, H, W), on the generator's device."""

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """(B,) losses of images (B, C, H, W) in [-1, 1]; the same for the same arguments."""


def draw_noise(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, int]:
    """Unit normal noise of `shape`, and a seed for dropout masks, from the generator's own seed: a draw of it would be
    waited for.
    """
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return noise, generator.initial_seed() ^ _DROPOUT


@contextmanager
def same_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, dropout masks on `device` follow from `seed`: the same for student and target. The global state is as
    before afterwards.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
