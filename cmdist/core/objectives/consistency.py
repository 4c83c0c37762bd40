"""Consistency distillation (paper, Algorithm 2) and training (Algorithm 3); improved CT is CT with other arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.curricula import Curriculum
from cmdist.core.distances import Distance
from cmdist.core.noise import IndexDraw, Weighting, add_noise, onto
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.solvers import Step


@dataclass(frozen=True)
class Pairs(Draw):
    """Neighbours of the grid."""

    sigma_next: Tensor  # (B,), nearer the data


@dataclass(frozen=True)
class Consistency:
    """E weighting d(f(x, sigma), f^-(x_next, sigma_next)) over neighbours of the grid of N levels (eqs. 7 and 10).

    x_next comes from x by one `solver_step` of the teacher's ODE (distillation), or is the image with the same noise at
    sigma_next (training, no solver): written as image + sigma_next noise, which keeps the digits that an Euler step
    would lose.
    """

    curriculum: Curriculum
    grid: Callable[[int], Tensor]  # N -> descending sigmas (N,), on the CPU
    index_draw: IndexDraw
    distance: Distance
    weighting: Weighting
    solver_step: Step | None = None

    def at(self, step: int) -> At:
        """N and mu."""
        point = self.curriculum(step)
        return {"n_timesteps": point.n_timesteps, "mu": point.mu}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Pairs:
        """A pair of neighbours of the grid for each image."""
        sigmas = self.grid(int(at["n_timesteps"]))
        i = self.index_draw(shape[0], sigmas, generator)
        sigmas = onto(sigmas, generator.device)
        return Pairs(sigmas[i], *draw_noise(shape, generator), sigma_next=sigmas[i + 1])

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted distances; gradient only through the student's value at sigma."""
        assert isinstance(draw, Pairs)
        x = add_noise(images, draw.sigma, draw.noise)
        with torch.no_grad():
            if self.solver_step is None:
                x_next = add_noise(images, draw.sigma_next, draw.noise)
            else:
                assert networks.teacher is not None, "distillation needs a teacher"
                x_next = self.solver_step(networks.teacher, x, draw.sigma, labels, draw.sigma_next)
        return pair_losses(networks, x, x_next, labels, draw, self.distance, self.weighting)


def pair_losses(
    networks: Networks,
    x: Tensor,
    x_next: Tensor,
    labels: Tensor | None,
    draw: Pairs,
    distance: Distance,
    weighting: Weighting,
) -> Losses:
    """weighting d(f(x, sigma), f^-(x_next, sigma_next)) of pairs x, x_next (B, C, H, W), with one dropout mask."""
    with torch.no_grad(), same_dropout(draw.dropout_seed, x.device):
        goal = (networks.target or networks.bare_student)(x_next, draw.sigma_next, labels)
    with same_dropout(draw.dropout_seed, x.device):
        value = networks.student(x, draw.sigma, labels)
    return Losses(weighting(draw.sigma, draw.sigma_next) * distance(value, goal))
