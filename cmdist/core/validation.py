"""Validation of a consistency function: figures that stay comparable while N(k) and mu(k) change. All are root mean
squares of a pixel.
"""

import itertools

import torch
from torch import Tensor

from cmdist.core.noise import Denoise, add_noise
from cmdist.core.solvers import Step


def rms(x: Tensor) -> Tensor:
    """The root mean square of all values of x, a float64 scalar."""
    return x.double().square().mean().sqrt()


@torch.no_grad()
def grid_errors(
    consistency: Denoise,
    images: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    teacher: Denoise | None = None,
    step: Step | None = None,
) -> Tensor:
    """(N-1,) RMS of f(x_t, t) - f(x_s, s) between the neighbours t > s of the descending grid `sigmas` (N,).

    x_t = image + t noise for images and unit normal noise (B, C, H, W). x_s has the same noise at s (the pair of
    consistency training, paper eq. 10); with a `teacher` it is one `step` of its ODE from x_t (the pair of
    distillation, eq. 7), which a perfect student maps to the same image. The first kind is not 0 even then, but shrinks
    with the gap.
    """
    assert (teacher is None) == (step is None)
    errors = []
    for t, s in itertools.pairwise(sigmas.tolist()):
        sigma, sigma_next = images.new_full((len(images),), t), images.new_full((len(images),), s)
        x = add_noise(images, sigma, noise)
        along = None if teacher is None or step is None else step(teacher, x, sigma, labels, sigma_next)
        x_next = add_noise(images, sigma_next, noise) if along is None else along
        errors.append(rms(consistency(x, sigma, labels) - consistency(x_next, sigma_next, labels)))
    return torch.stack(errors)
