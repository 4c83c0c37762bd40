"""Distances d(x, y) -> (B,) between images (B, C, H, W)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Perceptual:
    """A distance between features of a network, see `lpips`; `size` None: images are given as they are."""

    network: Callable[[Tensor, Tensor], Tensor]
    features: Callable[[Tensor], Sequence[Tensor]] | None
    size: int | None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, C, H, W) twice -> (B,)."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._given(x), self._given(y)
            return self.network(x, y).reshape(len(x), -1).mean(1)

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        """H v = 2 J^T J v with the Jacobian J of the features at x, fp32."""
        assert self.features is not None, "only a distance between features has a Jacobian"
        features = self.features
        with torch.autocast(x.device.type, enabled=False):
            x, v = x.detach().float(), v.float()

            def seen(x: Tensor) -> tuple[Tensor, ...]:
                return tuple(features(self._given(x)))

            with torch.no_grad():
                moved = torch.func.jvp(seen, (x,), (v,))[1]
            back = torch.func.vjp(seen, x)[1]
            product: Tensor = back(tuple(2 * each for each in moved))[0]
            return product

    def _given(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.size is None or x.shape[-1] >= 256:
            return x
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)


def lpips(
    network: Callable[[Tensor, Tensor], Tensor],
    features: Callable[[Tensor], Sequence[Tensor]] | None = None,
    size: int = 224,
) -> Perceptual:
    """LPIPS by a network (x, y in [-1, 1]) -> (B, ...), which is the squared difference of its `features` (x) -> each
    (B, ...); images below 256 pixels are resized to `size`, bilinear, as in the paper's code.

    Given and weighted in fp32, whatever the network does inside: autocast would take half precision for all of it, in
    which the features' normalization loses its epsilon.
    """
    return Perceptual(network, features, size)


Curvature = Callable[[Tensor, Tensor], Tensor]  # x, v (B, C, H, W) -> H v, H the second derivative of d(x, .) at x


def l2_curvature(x: Tensor, v: Tensor) -> Tensor:
    """Of the mean squared difference: 2 v over the number of pixels."""
    return 2 * v / v[0].numel()
