"""Denoising."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.curricula import Point
from cmdist.core.noise import add_noise, edm_weight, lognormal_sigma
from cmdist.core.objectives.base import Draw, Networks, same_dropout


@dataclass(frozen=True)
class Denoising:
    """EDM."""

    sigma_mean: float = -1.2
    sigma_std: float = 1.2
    sigma_data: float = 0.5

    def draw(self, shape: Sequence[int], point: Point, generator: torch.Generator) -> Draw:
        """All."""
        sigma = lognormal_sigma(shape[0], self.sigma_mean, self.sigma_std, generator)
        noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
        return Draw(sigma, None, noise, int(torch.randint(2**62, (), generator=generator, device=generator.device)))

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """(B,)."""
        with same_dropout(draw.dropout_seed, images.device):
            denoised = networks.student(add_noise(images, draw.sigma, draw.noise), draw.sigma, labels)
        return edm_weight(draw.sigma, self.sigma_data) * (denoised - images).square().flatten(1).mean(1)
