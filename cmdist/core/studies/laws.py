"""Probability laws on a line and the distances between them:
what several steps of sampling do to a distribution, without samples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor
from torch.special import ndtr

from cmdist.core.studies.line import Line, interpolate

ROWS = 256  # of the matrix points x points that is held at a time


@dataclass(frozen=True)
class Law:
    """A law on a line by its quantile function: P(X < values[i]) = below[i]; both (Z,) ascending, straight between."""

    values: Tensor
    below: Tensor

    def __post_init__(self) -> None:
        assert bool((self.values.diff() >= -1e-9).all()), "a quantile function does not fall"

    def quantile(self, below: Tensor) -> Tensor:
        """The value below which there is so much, (...)."""
        i = (torch.searchsorted(self.below, below) - 1).clamp(0, len(self.below) - 2)
        width = self.below[i + 1] - self.below[i]
        part = torch.where(width > 0, (below - self.below[i]) / width.clamp_min(1e-300), 0.0).clamp(0, 1)
        return self.values[i] + part * (self.values[i + 1] - self.values[i])

    def noised(self, x: Tensor, tau: float) -> Tensor:
        """P(X + tau Z < x) at x (M,), Z ~ N(0, 1); tau above the spacing of the values."""
        return torch.cat([ndtr(scores) @ self.below.diff() for scores in self._scores(x, tau)])

    def noised_density(self, x: Tensor, tau: float) -> Tensor:
        """The density of X + tau Z at x (M,)."""
        heights = [torch.exp(-(scores**2) / 2) @ self.below.diff() for scores in self._scores(x, tau)]
        return torch.cat(heights) / (tau * sqrt(2 * pi))

    def _scores(self, x: Tensor, tau: float) -> Iterator[Tensor]:
        """(x - value) / tau for some x at a time and the middles between the values."""
        middles = (self.values[1:] + self.values[:-1]) / 2
        return ((rows[:, None] - middles) / tau for rows in torch.split(x, ROWS))

    def pushed(self, tau: float, x: Tensor, f: Tensor) -> "Law":
        """The law of f(X + tau Z) for an ascending function with the values f (M,) at ascending x (M,)."""
        return Law(f, self.noised(x, tau).clamp(0, 1).cummax(0).values)


def of_line(line: Line, sigma: float, z: Tensor) -> Law:
    """The law p_sigma of data with noise, at normal scores z (Z,) ascending."""
    return Law(line.quantile(z, sigma), ndtr(z))


def wasserstein(a: Law, b: Law, power: int) -> float:
    """W_p(a, b) = (integral over u in (0, 1) of |quantile_a(u) - quantile_b(u)|^p)^(1/p), between all u of both."""
    below = torch.cat([a.below, b.below]).sort().values
    low, high = max(float(a.below[0]), float(b.below[0])), min(float(a.below[-1]), float(b.below[-1]))
    below = below[(below >= low) & (below <= high)]
    gaps = (a.quantile(below) - b.quantile(below)).abs()
    return float(torch.trapezoid(gaps**power, below) ** (1 / power))


def total_variation(a: Law, b: Law, tau: float, x: Tensor) -> float:
    """TV(a * N(0, tau^2), b * N(0, tau^2)) = half the integral of the difference of the densities, over x (M,)."""
    return float(torch.trapezoid((a.noised_density(x, tau) - b.noised_density(x, tau)).abs(), x)) / 2


def multistep(
    start: Law, times: Sequence[float], sigma_min: float, table: Callable[[float], tuple[Tensor, Tensor]]
) -> Law:
    """The law that multistep sampling ends with (paper, Algorithm 1), from the law `start` of x at times[0].

    `table` gives for a noise level the ascending points x (M,) and f (M,) there, ascending too.
    """
    x, f = table(times[0])
    law = Law(interpolate(x, f, start.values), start.below)
    for time in times[1:]:
        x, f = table(time)
        law = law.pushed(sqrt(time**2 - sigma_min**2), x, f)
    return law
