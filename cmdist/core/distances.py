"""Distances d(x, y) -> (B,) between images (B, C, H, W)."""

from collections.abc import Callable, Sequence
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the pixels."""
    return (x - y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of the pixels (the paper writes the sum)."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """sqrt(|x - y|^2 + c^2) - c on the norm of the whole image (improved CT, section 3.3)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square().flatten(1).sum(1) + c * c).sqrt() - c

    return distance


def huber_c(shape: Sequence[int]) -> float:
    """0.00054 sqrt(D) for images of shape (C, H, W) (improved CT, section 3.3)."""
    return 0.00054 * sqrt(prod(shape))


def lpips(network: Callable[[Tensor, Tensor], Tensor], size: int = 224) -> Distance:
    """LPIPS by a network (x, y in [-1, 1]) -> (B, ...); images below 256 pixels are resized to `size`, bilinear, as in
    the paper's code.

    Given and weighted in fp32, whatever the network does inside: autocast would take half precision for all of it, in
    which the features' normalization loses its epsilon.
    """

    def distance(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, y = x.float(), y.float()
            if x.shape[-1] < 256:
                x, y = (F.interpolate(v, size=size, mode="bilinear", align_corners=False) for v in (x, y))
            return network(x, y).reshape(len(x), -1).mean(1)

    return distance
