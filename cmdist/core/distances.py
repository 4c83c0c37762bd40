"""Distances d(x, y) -> (B,) between images (B, C, H, W)."""

from collections.abc import Callable, Sequence
from math import prod, sqrt

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the pixels."""
    return (x - y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of the pixels (the paper writes the sum)."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """sqrt(|x - y|^2 + c^2) - c on the norm of the whole image (improved CT, eq. 8)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square().flatten(1).sum(1) + c * c).sqrt() - c

    return distance


def huber_c(shape: Sequence[int]) -> float:
    """0.00054 sqrt(D) for images of shape (C, H, W) (improved CT, section 3.3)."""
    return 0.00054 * sqrt(prod(shape))
