"""Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) in the noise levels of the consistency paper's own
comparison: a student of N Euler steps learns two of its teacher's half steps as one, and is then the teacher itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.distances import Distance
from cmdist.core.noise import Weighting, add_noise, expand, onto
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout


@dataclass(frozen=True)
class Stages:
    """N of a step: `first`, a power of 2, is halved after each stage of `steps` steps; those of N <= 2 are twice as
    long, and N = 1 is the last (the consistency paper's code).
    """

    first: int
    steps: int

    def at(self, step: int) -> tuple[int, int, int]:
        """N of a step, the step at which its stage began, and how long the stage is."""
        n, begin = self.first, 0
        while n > 1 and step >= begin + self._length(n):
            begin += self._length(n)
            n //= 2
        return n, begin, self._length(n)

    def _length(self, n: int) -> int:
        return self.steps if n > 2 else 2 * self.steps


@dataclass(frozen=True)
class Halves(Draw):
    """From sigma to sigma_next by way of sigma_half."""

    sigma_half: Tensor  # (B,)
    sigma_next: Tensor  # (B,), nearer the data


@dataclass(frozen=True)
class ProgressiveDistillation:
    """E weighting d(D(x, sigma), x*): x* is the denoised image by which one Euler step from sigma lands where the
    teacher's two do; sigma is any but the last of the grid of N + 1 levels.

    Between stages the teacher becomes the student, and the optimizer and the fall of the learning rate begin anew.
    """

    stages: Stages
    grid: Callable[[int], Tensor]  # number of levels -> descending sigmas, on the CPU
    distance: Distance
    weighting: Weighting

    def at(self, step: int) -> At:
        """N, and the part of the learning rate, which falls to 0 in every stage."""
        n, begin, length = self.stages.at(step)
        return {"n_steps": float(n), "lr_factor": max(1 - (step - begin) / length, 0.0)}

    def acts(self, step: int) -> Acts:
        """Before a stage other than the first,
        the teacher takes the student's weights and the optimizer starts afresh.
        """
        boundary = step > 0 and self.stages.at(step)[1] == step
        return Acts(teacher_is_student=boundary, zero_moments=boundary)

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Halves:
        """A step of the student for each image."""
        n = int(at["n_steps"])
        sigmas = onto(self.grid(2 * n + 1), generator.device)
        i = 2 * torch.randint(0, n, (shape[0],), generator=generator, device=generator.device)
        return Halves(sigmas[i], *draw_noise(shape, generator), sigma_half=sigmas[i + 1], sigma_next=sigmas[i + 2])

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted distances; gradient only through the student."""
        assert isinstance(draw, Halves) and networks.teacher is not None
        x = add_noise(images, draw.sigma, draw.noise)
        with torch.no_grad():
            goal = self._goal(networks, x, labels, draw)
        with same_dropout(draw.dropout_seed, x.device):
            denoised = networks.student(x, draw.sigma, labels)
        return Losses(self.weighting(draw.sigma, draw.sigma_next) * self.distance(denoised, goal))

    def _goal(self, networks: Networks, x: Tensor, labels: Tensor | None, draw: Halves) -> Tensor:
        """x*: an Euler step is a mean of x and the denoised image, so it is a mean of the teacher's two; x itself, 80
        times as large, and its digits stay out of it.
        """
        assert networks.teacher is not None
        sigma, half, end = draw.sigma, draw.sigma_half, draw.sigma_next
        first = networks.teacher(x, sigma, labels)
        share = expand(half / sigma, x)
        second = networks.teacher(share * x + (1 - share) * first, half, labels)
        part = expand((1 - end / half) / (1 - end / sigma), x)
        return (1 - part) * first + part * second
