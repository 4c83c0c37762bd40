"""Data on a line: a mixture of normals whose densities, quantiles and posteriors are known at every noise level, and
functions of it as tables.

On a line the probability-flow ODE keeps the order of points, so it keeps every point's quantile: the exact consistency
function is the map between quantiles, without solving anything. Quantiles are given as normal scores z, which do not
lose their digits in the tails: x at noise level sigma has the score z if P(X_sigma < x) = Phi(z).
"""

from dataclasses import dataclass
from math import ceil, log2, pi, sqrt

import torch
from torch import Tensor
from torch.special import ndtr

from cmdist.core.exact import GaussianMixture


@dataclass(frozen=True)
class Line:
    """Data ~ sum_k weights[k] N(means[k], std^2); `means`, `weights` (K,) float64, weights sum to 1."""

    means: Tensor
    std: float
    weights: Tensor

    def spread(self, sigma: float) -> float:
        """The standard deviation of a component with noise."""
        return sqrt(self.std**2 + sigma**2)

    def density(self, x: Tensor, sigma: float) -> Tensor:
        """p_sigma at x (...)."""
        scores = (x[..., None] - self.means) / self.spread(sigma)
        heights: Tensor = torch.exp(-(scores**2) / 2) @ self.weights
        return heights / (self.spread(sigma) * sqrt(2 * pi))

    def tail(self, x: Tensor, sigma: float, upper: Tensor) -> Tensor:
        """P(X_sigma < x) for x (...), and P(X_sigma > x) where `upper`."""
        scores = (x[..., None] - self.means) / self.spread(sigma)
        probability: Tensor = ndtr(torch.where(upper[..., None], -scores, scores)) @ self.weights
        return probability

    def quantile(self, z: Tensor, sigma: float) -> Tensor:
        """The x (...) with P(X_sigma < x) = Phi(z):
        bisection between the components' quantiles, then Newton's method.
        """
        spread, upper = self.spread(sigma), z > 0
        low, high = (v + spread * z for v in (self.means.min(), self.means.max()))
        width, mass, sign = float(self.means.max() - self.means.min()), ndtr(-z.abs()), torch.where(upper, -1.0, 1.0)
        for _ in range(max(1, ceil(log2(max(width, 1e-300) / (0.02 * spread))))):
            middle = (low + high) / 2
            below = sign * (self.tail(middle, sigma, upper) - mass) < 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        x = (low + high) / 2
        for _ in range(4):
            x = x - sign * (self.tail(x, sigma, upper) - mass) / self.density(x, sigma).clamp_min(1e-300)
            x = torch.minimum(torch.maximum(x, low), high)
        return x

    def consistency(self, x: Tensor, sigma: float, sigma_min: float) -> Tensor:
        """The exact consistency function: the point at sigma_min with the quantile that x (...) has at sigma;
        scores up to 8.
        """
        upper = x > self.quantile(x.new_zeros(()), sigma)
        z = torch.special.ndtri(self.tail(x, sigma, upper).clamp_min(1e-16))
        return self.quantile(torch.where(upper, -z, z), sigma_min)

    def posterior(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, float]:
        """p(x0 | x) for x (...): weights (..., K), means (..., K) and the standard deviation of its components."""
        total = self.spread(sigma) ** 2
        weights = (self.weights.log() - (x[..., None] - self.means) ** 2 / (2 * total)).softmax(-1)
        means = (self.std**2 * x[..., None] + sigma**2 * self.means) / total
        return weights, means, self.std * sigma / sqrt(total)

    @property
    def denoiser(self) -> GaussianMixture:
        """The same data for the solvers, which take x (B, 1)."""
        return GaussianMixture(self.means[:, None], self.std, self.weights)

    @property
    def variance(self) -> float:
        """Var(x0)."""
        mean = self.weights @ self.means
        return float(self.std**2 + self.weights @ (self.means - mean) ** 2)

    def scores(self, sigma_min: float, across: int, inside: int, furthest: float = 6.5) -> Tensor:
        """Ascending normal scores to tabulate a function at: `across` even ones, and `inside` that are even in x at
        sigma_min, which is where the consistency function is steep.
        """
        even = torch.linspace(-furthest, furthest, across, dtype=torch.float64)
        ends = self.quantile(torch.tensor([-3.0, 3.0], dtype=torch.float64), sigma_min)
        x = torch.linspace(float(ends[0]), float(ends[1]), inside, dtype=torch.float64)
        upper = x > self.quantile(x.new_zeros(()), sigma_min)
        z = torch.special.ndtri(self.tail(x, sigma_min, upper))
        both = torch.cat([even, torch.where(upper, -z, z)]).sort().values
        keep = torch.cat([both.new_ones(1, dtype=torch.bool), both.diff() > 1e-6])
        return both[keep]


def masses(z: Tensor) -> Tensor:
    """(Z,) probability that a normal score is nearest to each of the ascending z:
    the weights of a mean over the table.
    """
    edges = ndtr(torch.cat([z.new_tensor([-torch.inf]), (z[1:] + z[:-1]) / 2, z.new_tensor([torch.inf])]))
    mass: Tensor = edges.diff()
    return mass


def interpolate(x: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """The table values (Z,) at ascending x (Z,), at other points (...): cubic with the slopes of parabolas through
    three points, straight outside.
    """
    widths, rises = x.diff(), values.diff() / x.diff()
    inner = (widths[1:] * rises[:-1] + widths[:-1] * rises[1:]) / (widths[1:] + widths[:-1])
    slopes = torch.cat([rises[:1], inner, rises[-1:]])
    i = (torch.searchsorted(x, at) - 1).clamp(0, len(x) - 2)
    h = widths[i]
    t = (at - x[i]) / h
    outside = (t < 0) | (t > 1)
    line = values[i] + rises[i] * (at - x[i])
    u = 1 - t
    bend = h * t * u * (u * (slopes[i] - rises[i]) - t * (slopes[i + 1] - rises[i]))
    return torch.where(outside, line, line + bend)
