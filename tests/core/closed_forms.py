"""What the theory tests share: the three data distributions of cmdist.core.exact in float64, and oracles that use none
of core's code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmdist.core.exact import FiniteDataSet, Gaussian, GaussianMixture, Known, level_of
from cmdist.core.noise import Denoise
from cmdist.core.objectives.base import Objective
from cmdist.core.objectives.consistency import Pairs
from cmdist.core.preconditioning import Scalings
from cmdist.kinds.distances import plain
from cmdist.kinds.kind import Parts
from cmdist.kinds.objectives import OBJECTIVES
from cmdist.sections import Noise, Section
from cmdist.theory.identities import sectioned

DOUBLE = torch.float64
SHAPE = (1, 2, 2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@dataclass(frozen=True)
class Case:
    """Data = sum_k weights[k] N(means[k], std^2 I), as the oracles see it: a Gaussian has one mean, a finite data set
    std 0.
    """

    denoise: Denoise
    means: Tensor  # (K, C, H, W)
    std: float
    weights: Tensor  # (K,)

    def log_density(self, x: Tensor, sigma: float) -> Tensor:
        """(B,) log density of data + sigma noise, written out with torch.distributions."""
        spread = torch.full(self.means.shape[1:], (self.std**2 + sigma**2) ** 0.5, dtype=DOUBLE)
        parts = torch.distributions.Normal(self.means, spread).log_prob(x[:, None]).flatten(2).sum(2)
        return (parts + self.weights.log()).logsumexp(1)

    def oracle(self, x: Tensor, sigma: float) -> Tensor:
        """E[x_0 | x] = x + sigma^2 grad log p (Tweedie's formula)."""
        x = x.detach().requires_grad_()
        return x.detach() + sigma**2 * torch.autograd.grad(self.log_density(x, sigma).sum(), x)[0]


MEANS = 0.7 * randn(6, *SHAPE, seed=11)
WEIGHTS = torch.tensor([0.1, 0.2, 0.05, 0.3, 0.25, 0.1], dtype=DOUBLE)
EQUAL = torch.full((6,), 1 / 6, dtype=DOUBLE)
CASES = {
    "gaussian": Case(Gaussian(MEANS[0], 0.5), MEANS[:1], 0.5, torch.ones(1, dtype=DOUBLE)),
    "mixture": Case(GaussianMixture(MEANS, 0.3, WEIGHTS), MEANS, 0.3, WEIGHTS),
    "finite": Case(FiniteDataSet(MEANS), MEANS, 0.0, EQUAL),
}


def flow(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_end: Tensor | float, steps: int = 100) -> Tensor:
    """The probability-flow ODE from x at sigma (B,) to sigma_end by the classical Runge-Kutta method of order 4 in ln
    sigma.
    """
    u = sigma.log().view(-1, 1, 1, 1)
    h = (torch.as_tensor(sigma_end, dtype=DOUBLE).log().view(-1, 1, 1, 1) - u) / steps

    def slope(x: Tensor, u: Tensor) -> Tensor:  # dx/d(ln sigma) = sigma dx/dsigma
        return x - denoise(x, u.exp().flatten(), None)

    for _ in range(steps):
        a = slope(x, u)
        b = slope(x + h / 2 * a, u + h / 2)
        c = slope(x + h / 2 * b, u + h / 2)
        d = slope(x + h * c, u + h)
        x, u = x + h / 6 * (a + 2 * b + 2 * c + d), u + h
    return x


def slopes(values: list[float]) -> list[float]:
    """The orders seen between values measured at doubled numbers of steps: log2 of the ratio of neighbours."""
    return [log(a / b, 2) for a, b in zip(values, values[1:], strict=False)]


def posterior(case: Case, x: Tensor, sigma: Tensor, nodes: int = 12) -> tuple[Tensor, Tensor]:
    """The images that x = image + sigma noise may come from, (Q, B, C, H, W), and their probabilities (Q, B).

    A finite data set's are enumerated; for a Gaussian or mixture of one pixel they are the nodes of Gauss-Hermite
    quadrature.
    """
    assert case.std == 0 or x[0].numel() == 1
    s2, sigma2 = case.std**2, sigma.view(-1, 1, 1, 1) ** 2
    logs = -(x - case.means[:, None]).square().flatten(2).sum(2) / (2 * (s2 + sigma**2)) + case.weights.log()[:, None]
    centres = (s2 * x + sigma2 * case.means[:, None]) / (s2 + sigma2)  # (K, B, C, H, W)
    h, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes if case.std else 1))
    images = centres[:, None] + h.view(-1, 1, 1, 1, 1) * (s2 * sigma2 / (s2 + sigma2)).sqrt()
    weights = logs.softmax(0)[:, None] * (w / w.sum())[:, None]
    return images.flatten(0, 1), weights.flatten(0, 1)


PIXELS = 0.7 * randn(3, 1, 1, 1, seed=12)
ENUMERABLE = {
    "gaussian": Case(Gaussian(PIXELS[0], 0.5), PIXELS[:1], 0.5, torch.ones(1, dtype=DOUBLE)),
    "mixture": Case(GaussianMixture(PIXELS, 0.3, WEIGHTS[:3]), PIXELS, 0.3, WEIGHTS[:3] / WEIGHTS[:3].sum()),
    "finite": CASES["finite"],
}


def pairs(sigma: Tensor, sigma_next: Tensor, noise: Tensor, seed: int = 0) -> Pairs:
    """A draw of given neighbours."""
    return Pairs(sigma, noise, seed, sigma_next=sigma_next)


def as_network(
    function: Callable[..., Tensor], scalings: Callable[[Tensor], Scalings], sigma_data: float = 0.5, told: str = "log"
) -> Known:
    """The model with these scalings that is `function` of (x, sigma, labels, sigma_next where there is one)."""
    return Known(function, scalings, level_of(told, sigma_data))


def section(kind: str, **keys: Any) -> Section:
    """The keys of a kind; those that name runs need no run here."""
    return sectioned(kind, keys)


def objective(kind: str, noise: Noise | None = None, **keys: Any) -> Any:
    """What the table makes of a kind's keys."""
    parts = Parts(noise or Noise(), (1, 1, 1), 100, lambda keys: plain(keys, (1, 1, 1)))
    made: Objective = OBJECTIVES[kind].make(section(kind, **keys), parts)
    return made


MEAN, STD = 0.3, 0.7  # of the data that the hand-written gradients are about: one pixel
GAUSSIAN = Gaussian(MEAN, STD)


def power(p: Tensor | float, sigma_min: float = 0.002) -> Callable[..., Tensor]:
    """f_p = mean + (x - mean) ((std^2 + sigma_min^2) / (std^2 + sigma^2))^p: the consistency function at p = 1/2."""

    def f(x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_next: Tensor | None = None) -> Tensor:
        share = (STD**2 + sigma_min**2) / (STD**2 + sigma**2)
        return MEAN + (x - MEAN) * (share**p).view(-1, 1, 1, 1)

    return f


def nodes(sigma: Tensor, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images and noises (n^2 B, 1, 1, 1) for each of sigma (B,), and their probabilities (n^2 B,): expectations of
    polynomials in both, up to degree 2 n - 1, are exact sums.
    """
    h, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(n))
    w = w / w.sum()
    images, noises = (v.flatten().repeat(len(sigma)).view(-1, 1, 1, 1) for v in torch.meshgrid(h, h, indexing="ij"))
    return MEAN + STD * images, noises, (w[:, None] * w).flatten().repeat(len(sigma))
