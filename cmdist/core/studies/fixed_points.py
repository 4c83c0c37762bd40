"""What consistency training and distillation converge to on a grid of N noise levels, for data on a line: the functions
that reproduce themselves under the squared distance with a target that is held fixed.

Training's pair (x, x_next) has the same image and noise. Given x alone, the image is a draw from p(x0 | x), so x_next =
r x + (1 - r) x0' with r = sigma_next / sigma: a step of a Markov chain from noise to data, which keeps every marginal
p_sigma. The best function is the chain's mean, f_n(x) = E[f_(n-1)(X_(n-1)) | X_n = x] = E[X_1 | X_n = x].
Distillation's x_next is a solver's step from x, so its function is the end of the solver's path.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from cmdist.core.noise import Denoise
from cmdist.core.solvers import Step, integrate
from cmdist.core.studies.line import Line, interpolate, masses


def hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Points h and weights w (nodes,) with sum w g(h) = E g(Z) for polynomials g up to degree 2 nodes - 1,
    Z ~ N(0, 1) (Golub and Welsch).
    """
    off = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return points, vectors[0] ** 2


def chain_moments(line: Line, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor, float]:
    """X_next given X = x (...), a mixture:
    weights (..., K), means (..., K), the standard deviation of its components.
    """
    weights, means, std = line.posterior(x, sigma)
    ratio = sigma_next / sigma
    return weights, ratio * x[..., None] + (1 - ratio) * means, (1 - ratio) * std


def training(line: Line, sigmas: Sequence[float], z: Tensor, nodes: int = 16) -> list[Tensor]:
    """The fixed point of consistency training on the descending grid `sigmas` (N,): for each level, f (Z,) at the
    points with normal scores z (Z,), in the grid's order; the last one is the boundary condition f(x) = x.
    """
    h, w = hermite(nodes)
    x_next = line.quantile(z, sigmas[-1])
    tables = [x_next]
    for sigma, sigma_next in zip(reversed(sigmas[:-1]), reversed(sigmas[1:]), strict=True):
        x = line.quantile(z, sigma)
        weights, means, std = chain_moments(line, x, sigma, sigma_next)
        values = interpolate(x_next, tables[-1], means[..., None] + std * h)
        tables.append(((values @ w) * weights).sum(-1))
        x_next = x
    return tables[::-1]


def distillation(denoise: Denoise, step: Step, sigmas: Sequence[float], x: Tensor) -> Tensor:
    """The fixed point of distillation at x (B,) on the grid's first level: the end of the solver's path."""
    return integrate(step, denoise, x[:, None], torch.tensor(sigmas, dtype=torch.float64))[:, 0]


def variance_by_level(tables: Sequence[Tensor], z: Tensor) -> Tensor:
    """(N - 1,) the variance that training's function loses in each step of the grid, E Var(f_(n-1)(X_(n-1)) | X_n).

    f_n(X_n) = E[X_1 | X_n] is a martingale along the chain, so its steps are uncorrelated and the losses add up to
    E Var(X_1 | X_N), what is missing from Var(data).
    """
    weight = masses(z)
    second = torch.stack([weight @ table**2 for table in tables])
    return second.diff()


def gaussian_correlations(std: float, sigmas: Sequence[float]) -> Tensor:
    """(N - 1,) correlation of x and x_next in training's pairs for data ~ N(m, std^2),
    the last pair of the grid first.
    """
    up = torch.tensor(sigmas[::-1], dtype=torch.float64)
    total = std**2 + up**2
    return (std**2 + up[1:] * up[:-1]) / (total[1:] * total[:-1]).sqrt()


def gaussian_outputs(std: float, sigmas: Sequence[float], through: bool) -> Tensor:
    """(N,) standard deviation of f_n(X_n) from the data's end to noise, for data ~ N(m, std^2), where f is linear.

    Target held fixed: f_n = E[f_(n-1) | X_n], which multiplies by the correlation. `through`: the loss's true
    minimiser, with gradient through the target too, 2 f_n = E[f_(n-1) | X_n] + E[f_(n+1) | X_n]; at the last level
    there is no f_(n+1) and no 2.
    """
    rho = gaussian_correlations(std, sigmas)
    first = sqrt(std**2 + sigmas[-1] ** 2)
    if not through:
        return first * torch.cat([rho.new_ones(1), rho.cumprod(0)])
    diagonal = torch.full_like(rho, 2.0)
    diagonal[-1] = 1.0
    system = torch.diag(diagonal) - torch.diag(rho[1:], 1) - torch.diag(rho[1:], -1)
    right = torch.zeros_like(rho)
    right[0] = rho[0] * first
    return torch.cat([rho.new_tensor([first]), torch.linalg.solve(system, right)])
