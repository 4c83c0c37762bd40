"""Images from noise: one step and several steps of a consistency function, and the ODE of a denoiser.
Noise is an argument.
"""

from collections.abc import Callable
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from cmdist.core.noise import Denoise, Jump
from cmdist.core.solvers import Step, integrate, walk

# What a trained network is, and so how it is sampled: D; f to sigma_min; jumps between any two noise levels; a fixed
# number of Euler steps.
Makes = Literal["denoiser", "consistency", "jump", "steps"]


@torch.no_grad()
def one_step(
    denoise: Denoise, noise: Tensor, sigma_max: float = 80.0, labels: Tensor | None = None, clip: bool = True
) -> Tensor:
    """f(sigma_max noise, sigma_max) for unit normal noise (B, C, H, W); `clip` keeps pixels in [-1, 1]."""
    return multistep(denoise, noise[None], torch.tensor([sigma_max], dtype=torch.float64), 0.0, labels, clip)


@torch.no_grad()
def multistep(
    denoise: Denoise,
    noises: Tensor,
    times: Tensor,
    sigma_min: float = 0.002,
    labels: Tensor | None = None,
    clip: bool = True,
    project: Callable[[Tensor], Tensor] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Multistep consistency sampling (paper, Algorithm 1).

    noises (S, B, C, H, W), unit normal; times (S,) descending sigmas, of which the first is sigma_max. Each further
    step adds noise of variance times[i]^2 - sigma_min^2 and removes it. `project` restores what is known of the images
    after each step (Algorithm 4); the first noise is added to `start` (B, C, H, W), else to the projection of 0.
    """
    assert len(noises) == len(times)
    assert min(times.tolist()) > sigma_min * (1 - 1e-6), "a time is below sigma_min"
    x = torch.zeros_like(noises[0]) if start is None else start
    if project is not None:
        x = project(x)
    for i, (noise, time) in enumerate(zip(noises, times.tolist(), strict=True)):
        # not below 0: a time that is sigma_min in fp32 may be rounded to less
        level = time if i == 0 else sqrt(max(time**2 - sigma_min**2, 0.0))
        x = denoise(x + level * noise, torch.full((len(x),), time, dtype=x.dtype, device=x.device), labels)
        if project is not None:
            x = project(x)
        x = x.clamp(-1, 1) if clip else x
    return x


@torch.no_grad()
def ode(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, step: Step, labels: Tensor | None = None, clip: bool = True
) -> Tensor:
    """The probability-flow ODE from sigmas[0] noise through the grid sigmas (n,),
    whose last entry may be 0 (EDM, Algorithm 1).
    """
    x = integrate(step, denoise, float(sigmas[0]) * noise, sigmas, labels)
    return x.clamp(-1, 1) if clip else x


@torch.no_grad()
def jumps(jump: Jump, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None, clip: bool = True) -> Tensor:
    """sigmas[0] noise (B, C, H, W) carried from each noise level of sigmas (n,) to the next; without new noise."""
    x = walk(jump, float(sigmas[0]) * noise, sigmas, labels)
    return x.clamp(-1, 1) if clip else x
