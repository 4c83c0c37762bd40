"""Sampling."""
import torch
from torch import Tensor
from cmdist.core.noise import Denoise, expand
from cmdist.core.solvers import Step, integrate


@torch.no_grad()
def one_step(denoise: Denoise, noise: Tensor, sigma_max: float, labels: Tensor | None = None, clip: bool = True) -> Tensor:
    """One step."""
    x = denoise(sigma_max * noise, torch.full((len(noise),), sigma_max, device=noise.device, dtype=noise.dtype), labels)
    return x.clamp(-1, 1) if clip else x


@torch.no_grad()
def multistep(denoise: Denoise, noises: Tensor, times: Tensor, sigma_min: float, labels: Tensor | None = None, clip: bool = True) -> Tensor:
    """Algorithm 1."""
    x = one_step(denoise, noises[0], float(times[0]), labels, clip)
    for noise, time in zip(noises[1:], times[1:], strict=True):
        t = float(time)
        x = x + (t * t - sigma_min * sigma_min) ** 0.5 * noise
        x = denoise(x, torch.full((len(x),), t, device=x.device, dtype=x.dtype), labels)
        x = x.clamp(-1, 1) if clip else x
    return x


@torch.no_grad()
def ode(denoise: Denoise, noise: Tensor, sigmas: Tensor, step: Step, labels: Tensor | None = None) -> Tensor:
    """PF-ODE."""
    return integrate(step, denoise, sigmas[0].to(noise) * noise, sigmas, labels)
