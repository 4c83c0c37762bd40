"""Lagrangian self-distillation of a flow map (Boffi et al. 2025, arXiv:2505.18825): d/dr X(y, a, r) = v(X, r), with the
derivative in the second time only.

With X = y - (a - r) u, in flow matching's times, that is u = v(X, r) + (a - r) du/dr.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.flow import flow_time, velocity
from cmdist.core.noise import add_noise, expand
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.objectives.mean_flow import Jumps, Levels, weighted
from cmdist.core.solvers import mean_jump
from cmdist.core.tangents import denoised_along_next


@dataclass(frozen=True)
class Lagrangian:
    """S / (sg S + c)^p, S = |u - (a - r) du/dr - sg(v(X, r))|^2, the sum over pixels, where v(X, r) is the network's
    own u(X, r, r); where r = a its goal is noise - image, flow matching.

    S is the squared residual, and the gradient goes through the derivative, as the authors let it. Both sides hang on
    u(y, a, a): where too little learns that, or a weight makes little of it, the goal drifts away with the network.
    """

    levels: Levels
    power: float
    c: float

    def at(self, step: int) -> At:
        """Every step is like every other."""
        return {}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Jumps:
        """Two noise levels for each image."""
        sigma, sigma_next = self.levels(shape[0], generator)
        return Jumps(sigma, *draw_noise(shape, generator), sigma_next=sigma_next)

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted squared residuals; they are told unweighted, as means over pixels."""
        assert isinstance(draw, Jumps)
        sigma, sigma_next, x = draw.sigma, draw.sigma_next, add_noise(images, draw.sigma, draw.noise)
        bare, seed = networks.bare_student, draw.dropout_seed
        along = denoised_along_next(bare, x, sigma, labels, seed, sigma_next, gradient=True)
        u = velocity(x, sigma, along.value)
        a, r = flow_time(sigma), flow_time(sigma_next)
        # (a - r) du/dr: the mean denoiser is y - a u, and dr = r (1 - r) d ln sigma_next
        bend = -expand((a - r) / (a * r * (1 - r)), x) * along.slope
        with torch.no_grad():
            there = mean_jump(lambda *_: along.value, x, sigma, labels, sigma_next)
            with same_dropout(seed, x.device):
                own = velocity(there, sigma_next, bare(there, sigma_next, labels, sigma_next))
            goal = torch.where(expand(sigma_next == sigma, x), draw.noise - images, own)
        error = (u - bend - goal).square().flatten(1)
        told = {"error": error.mean(1), "tangent": bend.square().flatten(1).mean(1).sqrt()}
        return Losses(weighted(error.sum(1), self.power, self.c), told)
