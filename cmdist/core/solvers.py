"""The probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (EDM eq. 1 with sigma(t) = t) and its solvers."""

import itertools
from collections.abc import Sequence
from functools import partial
from math import log
from typing import Protocol

import torch
from torch import Tensor

from cmdist.core.noise import Denoise, Jump, MeanDenoise, expand


class Step(Protocol):
    """A solver: with its denoiser bound it is a jump."""

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
        """x at sigma -> x at sigma_next, all (B, ...)."""


def derivative(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma at sigma > 0."""
    return (x - denoised) / expand(sigma, x)


def euler_step(denoise: Denoise, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    """First order, one evaluation."""
    d = derivative(x, sigma, denoise(x, sigma, labels))
    return x + expand(sigma_next - sigma, x) * d


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    """Second order, two evaluations (EDM, Algorithm 1); where sigma_next is 0 Euler's step, with the second unused."""
    d = derivative(x, sigma, denoise(x, sigma, labels))
    step = expand(sigma_next - sigma, x)
    ahead = x + step * d
    # No look at whether all are 0: the host would wait for the device at every step. `integrate` knows without looking.
    there = torch.where(sigma_next == 0, sigma, sigma_next)
    d_next = derivative(ahead, there, denoise(ahead, there, labels))
    return torch.where(expand(sigma_next == 0, x), ahead, x + step * (d + d_next) / 2)


def mean_jump(denoise: MeanDenoise, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    """A flow map, by one evaluation over any distance: Euler's step with the mean denoiser from sigma to sigma_next.

    In flow-matching time it is y - (a - r) u(y, r, a), with the mean velocity u of MeanFlow (Geng et al. 2025, eq. 3).
    """
    # a step down from sigma_max would lose the digits that this weighted mean keeps
    share = expand(sigma_next / sigma, x)
    return share * x + (1 - share) * denoise(x, sigma, labels, sigma_next)


def walk(jump: Jump, x: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """x at sigmas[0] -> x at sigmas[-1], by jumps between neighbours of the grid sigmas (n,).

    A grid on the CPU is best: its values are read by the host.
    """
    for sigma, sigma_next in itertools.pairwise(sigmas.tolist()):
        x = jump(x, x.new_full((len(x),), sigma), labels, x.new_full((len(x),), sigma_next))
    return x


def integrate(step: Step, denoise: Denoise, x: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """As `walk`, by a solver's steps; a last step to 0 is Euler's (EDM, Algorithm 1)."""
    if float(sigmas[-1]) > 0:
        return walk(partial(step, denoise), x, sigmas, labels)
    return walk(partial(euler_step, denoise), walk(partial(step, denoise), x, sigmas[:-1], labels), sigmas[-2:], labels)


def log_spaced(n: int, sigma_min: float, sigma_max: float) -> list[float]:
    """n noise levels from sigma_max down to sigma_min, evenly spaced in ln sigma, both ends exact."""
    return [sigma_max * (sigma_min / sigma_max) ** (i / (n - 1)) for i in range(n - 1)] + [sigma_min]


def dpm_solver_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], labels: Tensor | None = None) -> Tensor:
    """All points (n, B, ...) of DPM-Solver++(2M) through the descending grid sigmas (n), from x at sigmas[0]: second
    order, one evaluation a step (Lu et al. 2022, arXiv:2211.01095, Algorithm 2, in the noise levels of this ODE).

    Steps are exact for a denoiser that is linear in ln sigma; the first takes it as constant, an Euler step.
    """
    points, before = [x], None
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoise(x, x.new_full((len(x),), sigma), labels)
        ahead = denoised
        if before is not None:  # extrapolated to the middle of the step
            ahead = denoised + (denoised - before) * log(sigma / sigma_next) / (2 * log(sigmas[i - 1] / sigma))
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * ahead
        before = denoised
        points.append(x)
    return torch.stack(points)
