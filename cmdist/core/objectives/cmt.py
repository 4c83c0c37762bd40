"""Consistency mid-training (Hu et al. 2025, arXiv:2509.24526): the student learns, at every point of a trajectory of
its teacher's ODE, where that ends; afterwards it is tuned as a consistency model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cmdist.core.distances import Distance
from cmdist.core.noise import add_noise
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.solvers import dpm_solver_2m, log_spaced


@dataclass(frozen=True)
class MidTraining:
    """E d(f(x_i, sigma_i), x_n), the mean over the points i < n of a trajectory from image + sigma_max noise to
    sigma_min, by DPM-Solver++(2M) with n steps evenly spaced in ln sigma.

    A micro-batch of B images is B trajectories: n B images for the student. `at_once` points go through it together;
    with fewer than n it passes through them again for the gradient, so that activations of no more are held.
    """

    points: int
    at_once: int
    sigma_min: float
    sigma_max: float
    distance: Distance

    def at(self, step: int) -> At:
        """Every step is like every other."""
        return {}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Draw:
        """Where the trajectories begin."""
        sigma = torch.full((shape[0],), self.sigma_max, device=generator.device)
        return Draw(sigma, *draw_noise(shape, generator))

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Means of the distances at each trajectory's points; gradient only through the student."""
        assert networks.teacher is not None, "mid-training follows a teacher"
        sigmas = log_spaced(self.points + 1, self.sigma_min, self.sigma_max)
        with torch.no_grad():
            path = dpm_solver_2m(networks.teacher, add_noise(images, draw.sigma, draw.noise), sigmas, labels)
        together = partial(self._distances, networks.student, path[-1], labels, draw)
        distances = []
        for first in range(0, self.points, self.at_once):
            some = slice(first, min(first + self.at_once, self.points))
            arguments = path[:-1][some], sigmas[:-1][some]
            if self.at_once < self.points and torch.is_grad_enabled():
                distances.append(checkpoint(together, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                distances.append(together(*arguments))
        return Losses(torch.cat(distances).mean(0))

    def _distances(
        self,
        student: Callable[..., Tensor],
        end: Tensor,
        labels: Tensor | None,
        draw: Draw,
        x: Tensor,
        sigmas: list[float],
    ) -> Tensor:
        """(k, B) distances of f at k points x (k, B, C, H, W) from the end."""
        k, b = x.shape[:2]
        sigma = torch.cat([draw.sigma.new_full((b,), value) for value in sigmas])
        with same_dropout(draw.dropout_seed, x.device):
            values = student(x.flatten(0, 1), sigma, None if labels is None else labels.repeat(k))
        return self.distance(values, end.repeat(k, 1, 1, 1)).view(k, b)
