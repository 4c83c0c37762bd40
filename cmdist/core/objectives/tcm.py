"""Truncated consistency models (Lee et al. 2024, arXiv:2410.14895), second stage: consistency training above a noise
level only, with the first stage, frozen, as its boundary there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.distances import Distance
from cmdist.core.noise import Weighting, add_noise, expand, student_t_between
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.objectives.consistency import Pairs
from cmdist.core.objectives.ect import Stages


@dataclass(frozen=True)
class Truncated:
    """The mean over sigma of weighting d(f(x, sigma), g(x_next, sigma_next)), plus `boundary_weight` times that of
    samples at sigma = boundary; g is the frozen first stage where sigma_next < boundary, else f without gradient.

    The first `share` of a micro-batch are the samples at the boundary. Of the others ln sigma is sigma_mean + sigma_std
    T, T of Student's law with `df`, truncated to boundary <= sigma <= sigma_max. All have one dropout mask.
    """

    stages: Stages
    boundary: float
    share: float
    boundary_weight: float
    sigma_mean: float
    sigma_std: float
    df: float
    sigma_max: float
    distance: Distance
    weighting: Weighting

    def at(self, step: int) -> At:
        """The stage and its gap."""
        return self.stages.at(step)

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Pairs:
        """A pair of noise levels for each image."""
        drawn = student_t_between(
            shape[0], self.df, self.sigma_mean, self.sigma_std, self.boundary, self.sigma_max, generator
        )
        sigma = drawn.masked_fill(self._at_boundary(shape[0], generator.device), self.boundary)
        return Pairs(sigma, *draw_noise(shape, generator), sigma_next=self.stages.nearer(sigma, at["gap"]))

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted distances, scaled so that their mean is the mean of each part, added up."""
        assert isinstance(draw, Pairs) and networks.frozen is not None
        x, x_next = (add_noise(images, sigma, draw.noise) for sigma in (draw.sigma, draw.sigma_next))
        goals = []
        for network in (networks.frozen, networks.target or networks.bare_student):
            with torch.no_grad(), same_dropout(draw.dropout_seed, x.device):
                goals.append(network(x_next, draw.sigma_next, labels))
        goal = torch.where(expand(draw.sigma_next < self.boundary, x), goals[0], goals[1])
        with same_dropout(draw.dropout_seed, x.device):
            value = networks.student(x, draw.sigma, labels)
        losses = self.weighting(draw.sigma, draw.sigma_next) * self.distance(value, goal)
        return Losses(self._parts(losses) * losses)

    def _at_boundary(self, n: int, device: torch.device) -> Tensor:
        return torch.arange(n, device=device) < int(n * self.share)

    def _parts(self, losses: Tensor) -> Tensor:
        """What makes of a mean over all (B,) the mean over the rest plus that over the boundary, weighted."""
        n, some = len(losses), int(len(losses) * self.share)
        at_boundary, rest = self.boundary_weight * n / max(some, 1), n / max(n - some, 1)
        scale = torch.full_like(losses, rest)
        return scale.masked_fill(self._at_boundary(n, losses.device), at_boundary)
