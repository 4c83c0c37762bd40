"""alpha-Flow against its formula in flow-matching time, its order on closed forms, its draws and its schedule."""

import pytest
import torch
from closed_forms import DOUBLE, GAUSSIAN, nodes, objective, randn, slopes
from torch import Tensor

from cmdist.core.exact import Gaussian
from cmdist.core.flow import flow_time
from cmdist.core.objectives.alpha_flow import Ways
from cmdist.core.objectives.base import Networks
from cmdist.sections import Noise

KIND = "alpha_flow"
SIGMA = torch.tensor([0.3, 1.3, 4.0, 60.0, 2.0], dtype=DOUBLE)
NEXT = torch.tensor([0.002, 0.5, 0.1, 1.0, 2.0], dtype=DOUBLE)  # the last: flow matching
IMAGES, NOISE = 0.5 * randn(5, 1, 2, 2), randn(5, 1, 2, 2, seed=2)


def constant(alpha: float, **keys: object) -> object:
    return objective(KIND, curriculum={"kind": "constant", "alpha": alpha}, **keys)


def ways(alpha: float, sigma: Tensor = SIGMA, sigma_next: Tensor = NEXT) -> Ways:
    part = torch.where(sigma == sigma_next, torch.ones_like(sigma), alpha)
    return Ways(sigma, NOISE, 0, sigma_next=sigma_next, alpha=part)


def network(x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    """Nobody's mean denoiser, other at every pair of noise levels."""
    s, t = sigma.view(-1, 1, 1, 1), sigma_next.view(-1, 1, 1, 1)
    return (0.3 * x + 0.2 * t + (s * x).sin()) / (1 + s) + 0.1


def other(x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    return network(x, sigma, labels, sigma_next) * 0.5


def u(denoise: object, y: Tensor, r: Tensor, a: Tensor) -> Tensor:
    """The mean velocity from a to r that a mean denoiser stands for: D = y - a u."""
    x, sigma, sigma_next = y / (1 - a), (a / (1 - a)).flatten(), (r / (1 - r)).flatten()
    return (y - denoise(x, sigma, None, sigma_next)) / a  # type: ignore[operator]


@pytest.mark.parametrize("by", ["image", "student"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1])
def test_it_is_the_formula_in_flow_matching_time(alpha: float, by: str) -> None:
    a, r = (flow_time(s).view(-1, 1, 1, 1) for s in (SIGMA, NEXT))
    y = (1 - a) * IMAGES + a * NOISE
    v = NOISE - IMAGES
    if by == "student":  # but what learns the velocity itself learns that of the images
        v = torch.where(a == r, v, u(other, y, a, a))
    part = torch.where(a == r, torch.ones_like(a), alpha)
    goal = part * v + (1 - part) * u(other, y - part * (a - r) * v, r, a - part * (a - r))
    error = (u(network, y, r, a) - goal).square().flatten(1).mean(1)
    made = constant(alpha, velocity=by, eps=0.01)
    losses = made.loss(Networks(network, other), IMAGES, None, ways(alpha))  # type: ignore[attr-defined]
    torch.testing.assert_close(losses.told["error"], error, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses.minimised, part.flatten() * error / (error + 0.01), rtol=1e-9, atol=1e-12)


def test_neither_goal_nor_weight_has_a_gradient() -> None:
    """d/dw of alpha S / (sg S + eps) is alpha 2 (u - goal) du/dw / (S + eps), for a network that is w of another."""
    w = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    student = lambda x, s, y, t: w * network(x, s, y, t)  # noqa: E731
    made, draw = constant(0.3, eps=0.01), ways(0.3)
    losses = made.loss(Networks(student, student), IMAGES, None, draw)  # type: ignore[attr-defined]
    (found,) = torch.autograd.grad(losses.minimised.sum(), w)
    a, r = (flow_time(s).view(-1, 1, 1, 1) for s in (SIGMA, NEXT))
    y = (1 - a) * IMAGES + a * NOISE
    with torch.no_grad():
        part, v = draw.alpha.view(-1, 1, 1, 1), NOISE - IMAGES
        goal = part * v + (1 - part) * u(student, y - part * (a - r) * v, r, a - part * (a - r))
        gap, slope = u(student, y, r, a) - goal, -network(y / (1 - a), SIGMA, None, NEXT) / a
        weight = part.flatten() / (gap.square().flatten(1).mean(1) + 0.01)
    torch.testing.assert_close(found, (weight * 2 * (gap * slope).flatten(1).mean(1)).sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("data", [GAUSSIAN, Gaussian(0.0, 0.5)])
def test_at_the_mean_velocity_its_goal_is_wrong_by_alpha_squared(data: Gaussian) -> None:
    """With the marginal velocity; at alpha = 1 the goal is the velocity itself."""
    sigma, sigma_next = SIGMA[:4], NEXT[:4]
    errors = []
    for alpha in (0.04, 0.02, 0.01):
        draw = Ways(sigma, NOISE[:4], 0, sigma_next=sigma_next, alpha=torch.full_like(sigma, alpha))
        losses = constant(alpha, velocity="student").loss(Networks(data, data), IMAGES[:4], None, draw)  # type: ignore[attr-defined]
        errors.append(losses.told["error"].sqrt())
    assert slopes([e.max().item() for e in errors]) == pytest.approx([2, 2], abs=0.15)
    assert errors[-1].max() < 1e-3


def test_what_learns_the_velocity_is_right_at_the_denoiser_on_average() -> None:
    """At r = a its goal is noise - image, whose mean given x the denoiser's velocity is: u - goal has mean 0 there."""
    images, noises, weights = nodes(SIGMA, n=4)
    sigma = SIGMA.repeat_interleave(16)
    draw = Ways(sigma, noises, 0, sigma_next=sigma, alpha=torch.ones_like(sigma))
    losses = constant(1.0).loss(Networks(GAUSSIAN, GAUSSIAN), images, None, draw)  # type: ignore[attr-defined]
    error = (weights * losses.told["error"]).view(5, 16).sum(1)
    a = flow_time(SIGMA)
    spread = 0.7**2 / ((1 - a) ** 2 * 0.7**2 + a**2)  # of noise - image given y: std^2 / A(a)^2
    torch.testing.assert_close(error, spread, rtol=1e-9, atol=0)


def test_draws_are_two_sorted_levels_and_an_exact_part_is_one() -> None:
    wide = Noise(sigma_min=1e-6, sigma_max=1e6)
    made = objective(KIND, wide, matching=0.25)
    draw = made.draw((40_000, 1, 1, 1), {"alpha": 0.3}, torch.Generator().manual_seed(1))
    equal = draw.sigma == draw.sigma_next
    assert equal[:10_000].all() and not equal[10_000:].any()
    assert (draw.sigma_next <= draw.sigma).all() and (draw.alpha == torch.where(equal, 1.0, 0.3)).all()
    both = torch.cat([draw.sigma, draw.sigma_next])[torch.cat([~equal, ~equal])].log()
    assert both.mean().item() == pytest.approx(-0.4, abs=0.02) and both.std().item() == pytest.approx(1, abs=0.02)
    narrow = objective(KIND, sigma_std=5.0).draw((10_000, 1, 1, 1), {"alpha": 1.0}, torch.Generator())
    assert narrow.sigma_next.min() >= 0.002 and narrow.sigma.max() <= 80


def test_alpha_is_a_function_of_the_step() -> None:
    made = objective(KIND, curriculum={"kind": "sigmoid", "start": 10, "total_steps": 110})
    alphas = [made.at(step)["alpha"] for step in range(200)]
    assert alphas == sorted(alphas, reverse=True)
    assert alphas[:11] == [1.0] * 11 and alphas[60] == 0.5 and alphas[110:] == [0.005] * 90
    assert alphas[61] == pytest.approx(1 / (1 + 2.718281828459045**0.25))
    assert objective(KIND).at(50)["alpha"] == 0.5  # of a run of 100 steps
    assert constant(0.5).at(7) == {"alpha": 0.5}  # type: ignore[attr-defined]
