"""The probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (EDM eq. 1 with sigma(t) = t) and its solvers."""

import itertools
from typing import Protocol

import torch
from torch import Tensor

from cmdist.core.noise import Denoise, expand


class Step(Protocol):
    """x at sigma -> x at sigma_next, all (B, ...)."""

    def __call__(
        self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """One step."""


def derivative(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma at sigma > 0."""
    return (x - denoised) / expand(sigma, x)


def euler_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None = None) -> Tensor:
    """First order, one evaluation."""
    d = derivative(x, sigma, denoise(x, sigma, labels))
    return x + expand(sigma_next - sigma, x) * d


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None = None) -> Tensor:
    """Second order, two evaluations (EDM, Algorithm 1); Euler's step where sigma_next is 0, its second evaluation
    thrown away.
    """
    d = derivative(x, sigma, denoise(x, sigma, labels))
    step = expand(sigma_next - sigma, x)
    ahead = x + step * d
    # No look at whether all are 0: the host would wait for the device at every step. `integrate` knows without looking.
    there = torch.where(sigma_next == 0, sigma, sigma_next)
    d_next = derivative(ahead, there, denoise(ahead, there, labels))
    return torch.where(expand(sigma_next == 0, x), ahead, x + step * (d + d_next) / 2)


def integrate(step: Step, denoise: Denoise, x: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """x at sigmas[0] -> x at sigmas[-1], through the grid sigmas (n,); a last step to 0 is Euler's (EDM, Algorithm 1).

    A grid on the CPU is best: its values are read by the host.
    """
    levels = sigmas.tolist()
    for sigma, sigma_next in itertools.pairwise(levels):
        move = step if sigma_next > 0 else euler_step
        x = move(denoise, x, x.new_full((len(x),), sigma), x.new_full((len(x),), sigma_next), labels)
    return x
