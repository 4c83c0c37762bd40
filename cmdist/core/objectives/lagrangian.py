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
    """S / (sg S + c)^p, S = |u - sg(v(X, r) + (a - r) du/dr)|^2, the sum over pixels, where v(X, r) is the network's
    own u(X, r, r); where r = a its goal is noise - image, flow matching.

    S is the authors' squared residual; they let its gradient go through du/dr too, which is a constant here.
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
        """Weighted squared errors of the mean velocity; they are told unweighted, as means over pixels."""
        assert isinstance(draw, Jumps)
        sigma, sigma_next, x = draw.sigma, draw.sigma_next, add_noise(images, draw.sigma, draw.noise)
        own, bend = self._own(networks, x, labels, draw)
        goal = torch.where(expand(sigma_next == sigma, x), draw.noise - images, own + bend)
        with same_dropout(draw.dropout_seed, x.device):
            u = velocity(x, sigma, networks.student(x, sigma, labels, sigma_next))
        error = (u - goal).square().flatten(1)
        told = {"error": error.mean(1), "tangent": bend.square().flatten(1).mean(1).sqrt()}
        return Losses(weighted(error.sum(1), self.power, self.c), told)

    @torch.no_grad()
    def _own(self, networks: Networks, x: Tensor, labels: Tensor | None, draw: Jumps) -> tuple[Tensor, Tensor]:
        """v(X, r) and (a - r) du/dr."""
        sigma, sigma_next, bare = draw.sigma, draw.sigma_next, networks.bare_student
        beside = denoised_along_next(bare, x, sigma, labels, draw.dropout_seed, sigma_next)
        there = mean_jump(lambda *_: beside.value, x, sigma, labels, sigma_next)
        with same_dropout(draw.dropout_seed, x.device):
            v = velocity(there, sigma_next, bare(there, sigma_next, labels, sigma_next))
        a, r = flow_time(sigma), flow_time(sigma_next)
        # the mean denoiser is y - a u, and dr = r (1 - r) d ln sigma_next
        return v, -expand((a - r) / (a * r * (1 - r)), x) * beside.slope
