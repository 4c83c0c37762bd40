"""Zero-shot editing with a consistency function (paper, Algorithm 4 and appendix D).

What is known of a picture y is its orthogonal projection onto some of its coefficients; the rest is generated. Each
projection stands here in its closed form, which does not depend on the basis of the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cmdist.core.noise import Denoise, expand
from cmdist.core.sampling import multistep

LUMA = (0.2989, 0.5870, 0.1140)  # of red, green and blue, as the paper's grey has them


@dataclass(frozen=True)
class Known:
    """The known part of pictures y (B, C, H, W): `project` gives x (B, C, H, W) the known coefficients of y, `error`
    tells by how much the largest of x's differs from them, (B,).
    """

    project: Callable[[Tensor], Tensor]
    error: Callable[[Tensor], Tensor]


class Edited(NamedTuple):
    """Pictures (B, C, H, W), clamped to [-1, 1], and how far their known part was off before that, (B,)."""

    images: Tensor
    error: Tensor


def inpainting(y: Tensor, mask: Tensor) -> Known:
    """Pixels where `mask`, that broadcasts to y (B, C, H, W), is 0 are known; those where it is 1 are generated."""

    def project(x: Tensor) -> Tensor:
        return torch.where(mask > 0, x, y)

    return Known(project, lambda x: ((x - y) * (mask <= 0)).abs().flatten(1).amax(1))


def colourisation(y: Tensor) -> Known:
    """The luma of RGB pictures y (B, 3, H, W) is known; grey ones have it in all three channels."""
    u = torch.tensor(LUMA, dtype=y.dtype, device=y.device)
    u = (u / u.norm())[:, None, None]

    def coefficient(x: Tensor) -> Tensor:
        return torch.sum(u * x, 1, keepdim=True)

    def project(x: Tensor) -> Tensor:
        return torch.add(x, u * (coefficient(y) - coefficient(x)))

    return Known(project, lambda x: (coefficient(x) - coefficient(y)).abs().flatten(1).amax(1))


def super_resolution(y: Tensor, patch: int) -> Known:
    """The mean of each patch x patch pixels of y (B, C, H, W) is known; H and W are multiples of `patch`."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, patch)

    def project(x: Tensor) -> Tensor:
        return x + F.interpolate(mean(y) - mean(x), scale_factor=patch, mode="nearest")

    # the coefficient of an orthogonal basis is patch times the mean
    return Known(project, lambda x: patch * (mean(x) - mean(y)).abs().flatten(1).amax(1))


@torch.no_grad()
def complete(
    consistency: Denoise,
    known: Known,
    noises: Tensor,
    times: Tensor,
    sigma_min: float = 0.002,
    labels: Tensor | None = None,
) -> Edited:
    """Generate what is not known (Algorithm 4): multistep sampling from noises (S, B, C, H, W) at the descending
    `times` (S,) that begins at the known part alone and restores it after each step.
    """
    x = multistep(consistency, noises, times, sigma_min, labels, clip=False, project=known.project)
    return Edited(x.clamp(-1, 1), known.error(x))


@torch.no_grad()
def stroke_guided(
    consistency: Denoise,
    y: Tensor,
    noises: Tensor,
    times: Tensor,
    sigma_min: float = 0.002,
    labels: Tensor | None = None,
) -> Tensor:
    """Pictures (B, C, H, W) that look like the strokes y (SDEdit, as in appendix D): y with noise of times[0], denoised
    and noised again at each of the other times.
    """
    return multistep(consistency, noises, times, sigma_min, labels, start=y)


@torch.no_grad()
def denoised(consistency: Denoise, noisy: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
    """The end point of the noisy pictures x_sigma (B, C, H, W) themselves: one evaluation at their noise level."""
    level = torch.full((len(noisy),), sigma, dtype=noisy.dtype, device=noisy.device)
    return consistency(noisy, level, labels).clamp(-1, 1)


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of noises a and b (C, H, W) at `weights` (K,), 0 at a and 1 at b: (K, C, H, W).

    The angle is that of the flattened vectors; two equal noises give themselves.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.double().clamp(-1, 1).acos()
    share = weights.to(a.device, torch.float64)
    if angle.sin() < 1e-6:
        first, second = 1 - share, share
    else:
        first, second = torch.sin((1 - share) * angle) / angle.sin(), torch.sin(share * angle) / angle.sin()
    wide = a.new_empty(len(weights), *a.shape)
    return expand(first.to(a.dtype), wide) * a + expand(second.to(a.dtype), wide) * b
