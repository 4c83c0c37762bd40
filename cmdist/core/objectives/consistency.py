"""Consistency."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.curricula import Point
from cmdist.core.distances import Distance
from cmdist.core.noise import Weighting, add_noise
from cmdist.core.objectives.base import Draw, Networks, same_dropout
from cmdist.core.solvers import Step


@dataclass(frozen=True)
class Consistency:
    """CD, CT."""

    grid: Callable[[int], Tensor]
    index_draw: Callable[..., Tensor]
    distance: Distance
    weighting: Weighting
    solver_step: Step | None = None

    def draw(self, shape: Sequence[int], point: Point, generator: torch.Generator) -> Draw:
        """All."""
        sigmas = self.grid(point.n_timesteps).to(generator.device)
        i = self.index_draw(shape[0], sigmas, generator)
        noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
        return Draw(sigmas[i], sigmas[i + 1], noise, int(torch.randint(2**62, (), generator=generator, device=generator.device)))

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """(B,)."""
        x = add_noise(images, draw.sigma, draw.noise)
        with torch.no_grad():
            if self.solver_step is None:
                x_next = add_noise(images, draw.sigma_next, draw.noise)
            else:
                x_next = self.solver_step(networks.teacher, x, draw.sigma, draw.sigma_next, labels)
            with same_dropout(draw.dropout_seed, images.device):
                goal = (networks.target or networks.student)(x_next, draw.sigma_next, labels)
        with same_dropout(draw.dropout_seed, images.device):
            found = networks.student(x, draw.sigma, labels)
        return self.weighting(draw.sigma, draw.sigma_next) * self.distance(found, goal)
