"""Easy consistency tuning (Geng et al. 2024, "Consistency Models Made Easy"): consistency training from a denoiser's
weights, with pairs that move together from stage to stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.distances import Distance
from cmdist.core.noise import Weighting, add_noise, lognormal_between
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise
from cmdist.core.objectives.consistency import Pairs, pair_losses

APART = 1.0001  # the lowest sigma, in sigma_min: there a pair would be one point, and its weight infinite

FINEST = 1e-6  # the smallest gap: float32 tells little less


@dataclass(frozen=True)
class Stages:
    """How near the data sigma_next is: sigma (1 - gap (1 + k sigmoid(-b sigma))), but not below sigma_min, where a
    consistency function is the identity (ECT, section 4; there 0 is the end, and the image stands for f).

    gap = q^-(stage + 1), at least 1 - max_ratio; a stage is `steps` long, None: the first never ends.
    """

    q: float
    steps: int | None
    k: float
    b: float
    max_ratio: float
    sigma_min: float

    def at(self, step: int) -> At:
        """The stage and the gap of a step."""
        stage = step // self.steps if self.steps else 0
        return {"stage": float(stage), "gap": max(self.q ** -(stage + 1.0), 1 - self.max_ratio, FINEST)}

    def nearer(self, sigma: Tensor, gap: float) -> Tensor:
        """sigma_next of sigma."""
        return (sigma * (1 - gap * (1 + self.k * torch.sigmoid(-self.b * sigma)))).clamp_min(self.sigma_min)


@dataclass(frozen=True)
class EasyConsistencyTuning:
    """E weighting d(f(x, sigma), f^-(x_next, sigma_next)) with the same noise and dropout mask in both, and ln sigma ~
    N(sigma_mean, sigma_std^2) truncated to the range of noise levels.
    """

    stages: Stages
    sigma_mean: float
    sigma_std: float
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
        lowest = APART * self.stages.sigma_min
        sigma = lognormal_between(shape[0], self.sigma_mean, self.sigma_std, lowest, self.sigma_max, generator)
        return Pairs(sigma, *draw_noise(shape, generator), sigma_next=self.stages.nearer(sigma, at["gap"]))

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted distances; gradient only through the student's value at sigma."""
        assert isinstance(draw, Pairs)
        x, x_next = (add_noise(images, sigma, draw.noise) for sigma in (draw.sigma, draw.sigma_next))
        return pair_losses(networks, x, x_next, labels, draw, self.distance, self.weighting)
