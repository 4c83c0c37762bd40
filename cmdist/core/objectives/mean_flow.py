"""MeanFlow (Geng et al. 2025, arXiv:2505.13447) and improved MeanFlow (Geng et al. 2025, arXiv:2512.02012): mean
velocities by their Eulerian identity u = v - (a - r) du/da, with the derivative along the path.

Times are flow matching's (core/flow.py). The network gives the mean denoiser y - a u, so du/da follows from its
derivative: a du/da = v - u - d(y - a u)/da.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.distances import Distance
from cmdist.core.flow import flow_time, velocity
from cmdist.core.noise import add_noise, expand, lognormal_between
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.tangents import denoised_along

# n, generator -> sigma, sigma_next (n,)
Levels = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
# noise levels (n,) of a law, by its generator
Law = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Jumps(Draw):
    """From sigma to sigma_next; where they are equal, flow matching."""

    sigma_next: Tensor  # (B,), nearer the data


def sorted_levels(n: int, generator: torch.Generator, law: Law, matching: float) -> tuple[Tensor, Tensor]:
    """Two draws of one law, sorted; equal for the first `matching` of them (MeanFlow)."""
    one, other = law(n, generator), law(n, generator)
    sigma, sigma_next = torch.maximum(one, other), torch.minimum(one, other)
    matched = torch.arange(n, device=sigma.device) < int(n * matching)
    return sigma, torch.where(matched, sigma, sigma_next)


def clipped_levels(
    n: int, generator: torch.Generator, law: Law, law_next: Law, matching: float
) -> tuple[Tensor, Tensor]:
    """A draw of each law; the second is the first with probability `matching`, and where it would be above that
    (MeanFlow's public code for CIFAR-10).
    """
    sigma, sigma_next = law(n, generator), law_next(n, generator)
    matched = torch.rand(n, generator=generator, device=generator.device) < matching
    return sigma, torch.where(matched, sigma, torch.minimum(sigma, sigma_next))


def lognormal(mean: float, std: float, low: float, high: float) -> Law:
    """ln sigma ~ N(mean, std^2) between low and high, which for the flow's time a is logit-normal."""
    return lambda n, generator: lognormal_between(n, mean, std, low, high, generator)


@dataclass(frozen=True)
class Perceptual:
    """What pixel MeanFlow (Lu et al. 2026, arXiv:2601.22158) adds: a distance of the mean denoiser to the image."""

    distance: Distance
    weight: float
    below: float  # of sigma


@dataclass(frozen=True)
class MeanFlow:
    """S / (sg S + c)^p, S = |u - sg(v - (a - r) du/da)|^2, the sum over pixels, with v = noise - image.

    `improved`: S = |u + (a - r) sg(du/da) - v|^2, where du/da is along the network's own velocity u(y, a, a). Its goal
    has no network in it, so S has a floor that can be known: the variance of v given y.
    """

    improved: bool
    levels: Levels
    power: float
    c: float
    perceptual: Perceptual | None = None

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
        v = draw.noise - images
        bend = self._bend(networks, x, images, labels, draw)
        with same_dropout(draw.dropout_seed, x.device):
            denoised = networks.student(x, sigma, labels, sigma_next)
        error = (velocity(x, sigma, denoised) + bend - v).square().flatten(1)
        told = {"error": error.mean(1), "tangent": bend.square().flatten(1).mean(1).sqrt()}
        return Losses(weighted(error.sum(1), self.power, self.c) + self._seen(denoised, images, sigma), told)

    @torch.no_grad()
    def _bend(self, networks: Networks, x: Tensor, images: Tensor, labels: Tensor | None, draw: Jumps) -> Tensor:
        """(a - r) du/da."""
        sigma, sigma_next, bare = draw.sigma, draw.sigma_next, networks.bare_student
        toward = images
        if self.improved:
            with same_dropout(draw.dropout_seed, x.device):
                toward = bare(x, sigma, labels, sigma)
        along = denoised_along(bare, x, sigma, toward, labels, draw.dropout_seed, sigma_next)
        a, r = flow_time(sigma), flow_time(sigma_next)
        slope = along.slope / expand(a * (1 - a), x)  # da = a (1 - a) d ln sigma
        difference = velocity(x, sigma, toward) - velocity(x, sigma, along.value)
        return expand(1 - r / a, x) * (difference - slope)

    def _seen(self, denoised: Tensor, images: Tensor, sigma: Tensor) -> Tensor | float:
        p = self.perceptual
        if p is None:
            return 0.0
        return p.weight * torch.where(sigma <= p.below, p.distance(denoised, images), 0.0)


def weighted(error: Tensor, power: float, c: float) -> Tensor:
    """error / (error + c)^power with a constant denominator: MeanFlow's adaptive weight."""
    return error / (error.detach() + c) ** power
