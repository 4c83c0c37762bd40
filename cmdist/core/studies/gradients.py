"""Losses and gradients of training and distillation for data on a line, with every expectation taken by quadrature:
what Theorems 2 and 6 of the paper say about their limits.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cmdist.core.curricula import Constant
from cmdist.core.distances import l2
from cmdist.core.noise import karras_sigmas, uniform, uniform_index
from cmdist.core.objectives.base import Networks
from cmdist.core.objectives.consistency import Consistency, Pairs
from cmdist.core.preconditioning import Model, consistency_scalings
from cmdist.core.solvers import Step
from cmdist.core.studies.fixed_points import hermite
from cmdist.core.studies.line import Line


class Student(NamedTuple):
    """A smooth function of one parameter that keeps the boundary condition."""

    f: Model
    parameter: Tensor  # scalar


def student(value: float, sigma_data: float = 0.5, sigma_min: float = 0.002) -> Student:
    """The project's parametrisation around a "network" tanh(parameter c_in x)."""
    parameter = torch.tensor(value, dtype=torch.float64, requires_grad=True)

    def net(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return (parameter * x).tanh()

    return Student(Model(net, consistency_scalings(sigma_data, sigma_min)), parameter)


def noisy(line: Line, sigma: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Points x (B, M) of p_sigma for each sigma (B,), and their probabilities (M,): exact for polynomials."""
    h, w = hermite(nodes)
    spread = (line.std**2 + sigma**2).sqrt()
    x = line.means[None, :, None] + spread[:, None, None] * h
    return x.flatten(1), (line.weights[:, None] * w).flatten()


def loss(
    line: Line,
    model: Student,
    sigmas: Tensor,
    step: Step | None,
    target: Student | None = None,
    nodes: tuple[int, int] = (24, 12),
) -> Tensor:
    """The expected loss over all pairs of the descending grid `sigmas` (N,), squared distance and weight 1, by the
    objective that trains networks: distillation by `step`, or training without one.
    """
    objective = Consistency(Constant(2), karras_sigmas, uniform_index, l2, uniform, step)
    x, chance = noisy(line, sigmas[:-1], nodes[0])
    sigma, sigma_next = (s[:, None].expand_as(x).flatten() for s in (sigmas[:-1], sigmas[1:]))
    x, chances = x.flatten(), chance.repeat(len(sigmas) - 1) / (len(sigmas) - 1)
    nets = Networks(model.f, model.f, target.f if target else None, line.denoiser)
    if step is not None:
        images, noise = torch.zeros_like(x), x / sigma  # distillation sees x only
    else:
        h, w = hermite(nodes[1])
        total = line.std**2 + sigma**2
        weights = (line.weights.log() - (x[:, None] - line.means) ** 2 / (2 * total[:, None])).softmax(-1)
        means = (line.std**2 * x[:, None] + sigma[:, None] ** 2 * line.means) / total[:, None]
        drawn = means[..., None] + (line.std * sigma / total.sqrt())[:, None, None] * h
        chances = (chances[:, None, None] * weights[..., None] * w).flatten()
        images = drawn.flatten()
        x, sigma, sigma_next = (v[:, None].expand(-1, drawn[0].numel()).flatten() for v in (x, sigma, sigma_next))
        noise = (x - images) / sigma
    draw = Pairs(sigma, noise[:, None], 0, sigma_next=sigma_next)
    expected: Tensor = chances @ objective.loss(nets, images[:, None], None, draw).minimised
    return expected


def gradient(line: Line, model: Student, sigmas: Tensor, step: Step | None, target: Student | None = None) -> float:
    """d loss / d parameter."""
    return float(torch.autograd.grad(loss(line, model, sigmas, step, target), model.parameter)[0])


def limit_gradient(
    line: Line, model: Student, levels: Callable[[Tensor], Tensor], points: int = 2000, nodes: int = 24
) -> float:
    """The limit of (N - 1) gradient with the student as its own target, for distillation and training alike (Theorems 5
    and 6, weight 1, squared distance): E over u of 2 (df/dparameter) (df/dsigma + (x - D)/sigma df/dx) dsigma/du.

    `levels` maps u (B,) in (0, 1) to sigma, increasing.
    """
    u = ((torch.arange(points, dtype=torch.float64) + 0.5) / points).requires_grad_()
    sigma = levels(u)
    growth = torch.autograd.grad(sigma.sum(), u)[0]
    sigma = sigma.detach()
    x, chance = noisy(line, sigma, nodes)
    s = sigma[:, None].expand_as(x).flatten()
    flat = x.flatten()[:, None]
    velocity = (flat - line.denoiser(flat, s)) / s[:, None]

    def frozen(x: Tensor, sigma: Tensor) -> Tensor:
        return model.f(x, sigma)

    tangent = torch.func.jvp(frozen, (flat, s), (velocity, torch.ones_like(s)))[1].detach()
    weights = (chance * growth[:, None] / points).flatten()
    pseudo = 2 * weights @ (model.f(flat, s) * tangent)[:, 0]
    return float(torch.autograd.grad(pseudo, model.parameter)[0])
