"""The teacher's objective: EDM's denoising loss (Karras et al. 2022, eq. 8 and table 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core import augmentation
from cmdist.core.noise import add_noise, edm_weight, lognormal_sigma
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout


@dataclass(frozen=True)
class Augmented(Draw):
    """With what is done to the images (B, 8)."""

    changes: Tensor


@dataclass(frozen=True)
class Denoising:
    """E (sigma^-2 + sigma_data^-2) |D(x + sigma z, sigma) - x|^2, the mean over pixels,
    with ln sigma ~ N(sigma_mean, sigma_std^2).

    With `augment` x is changed with that probability, and D is told how (core/augmentation.py).
    """

    sigma_mean: float = -1.2
    sigma_std: float = 1.2
    sigma_data: float = 0.5
    augment: float = 0.0

    def at(self, step: int) -> At:
        """Every step is like every other."""
        return {}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Draw:
        """Log-normal noise levels; changes if images are augmented."""
        sigma = lognormal_sigma(shape[0], self.sigma_mean, self.sigma_std, generator)
        draw = sigma, *draw_noise(shape, generator)
        return Augmented(*draw, augmentation.draw(shape[0], self.augment, generator)) if self.augment else Draw(*draw)

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted squared errors."""
        told = {}
        if isinstance(draw, Augmented):
            images = augmentation.changed(images, draw.changes)
            told = {"augment_labels": augmentation.told(draw.changes)}
        with same_dropout(draw.dropout_seed, images.device):
            denoised = networks.student(add_noise(images, draw.sigma, draw.noise), draw.sigma, labels, **told)
        return Losses(edm_weight(draw.sigma, self.sigma_data) * (denoised - images).square().flatten(1).mean(1))
