"""Consistency mid-training: its trajectory, whose end every point is compared with, and the part that goes through the
student at once.
"""

import pytest
import torch
from closed_forms import CASES, DOUBLE, GAUSSIAN, SHAPE, objective, power, randn, slopes
from torch import Tensor

from cmdist.core.distances import l2
from cmdist.core.exact import consistency
from cmdist.core.objectives.base import Draw, Networks
from cmdist.core.solvers import dpm_solver_2m, log_spaced
from cmdist.sections import Noise

KIND = "consistency_mid_training"


def draw(b: int = 3, sigma_max: float = 80.0) -> Draw:
    return Draw(torch.full((b,), sigma_max, dtype=DOUBLE), randn(b, *SHAPE, seed=2), 0)


def trajectory(x: Tensor, sigmas: list[float]) -> list[Tensor]:
    """DPM-Solver++(2M) of the Gaussian as its authors write it, in lambda = -ln sigma."""
    points, denoised, steps = [x], [], []
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        h = torch.tensor(sigma / sigma_next, dtype=DOUBLE).log()
        denoised.append(GAUSSIAN(x, torch.full((len(x),), sigma, dtype=DOUBLE)))
        x = (-h).exp() * x - torch.expm1(-h) * denoised[-1]
        if steps:
            r = steps[-1] / h
            x = x - torch.expm1(-h) / 2 * (denoised[-1] - denoised[-2]) / r
        steps.append(h)
        points.append(x)
    return points


@pytest.mark.parametrize("points", [2, 5])
@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_every_point_is_compared_with_the_end(points: int, at_once: int | None) -> None:
    images, each = 0.5 * randn(3, *SHAPE), draw()
    made = objective(KIND, points=points, at_once=at_once)
    sigmas = [80 * (0.002 / 80) ** (i / points) for i in range(points + 1)]
    path = trajectory(images + 80 * each.noise, sigmas)
    student = power(0.6)
    expected = [l2(student(x, torch.full((3,), s, dtype=DOUBLE)), path[-1]) for x, s in zip(path, sigmas, strict=True)]
    networks = Networks(student, student, teacher=GAUSSIAN)
    losses = made.loss(networks, images, None, each).minimised
    torch.testing.assert_close(losses, torch.stack(expected[:-1]).mean(0), rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_solver_has_order_two(name: str) -> None:
    """In fine steps of a smooth part of the ODE, and its first step, of order one, does not spoil that."""
    case, x = CASES[name], 5 * randn(3, *SHAPE, seed=4)
    errors = []
    end = consistency(case.denoise, x, torch.full((3,), 5.0, dtype=DOUBLE), 0.3, steps=4000)
    for n in (64, 128, 256):
        errors.append((dpm_solver_2m(case.denoise, x, log_spaced(n + 1, 0.3, 5.0))[-1] - end).abs().max().item())
    assert slopes(errors) == pytest.approx([2, 2], abs=0.2)
    errors = []
    for n in (128, 256, 512):
        uneven = log_spaced(n + 1, 1.0, 5.0) + log_spaced(n // 4 + 1, 0.3, 1.0)[1:]
        errors.append((dpm_solver_2m(case.denoise, x, uneven)[-1] - end).abs().max().item())
    assert slopes(errors) == pytest.approx([2, 2], abs=0.2)


def test_the_exact_consistency_function_is_wrong_by_the_solver_only() -> None:
    """From 20, in 2^k steps: the loss, of squares, falls by four orders of the step."""
    noise, losses = Noise(sigma_min=0.3, sigma_max=5.0), []
    images, each = 0.5 * randn(3, *SHAPE), draw(sigma_max=5.0)
    exact = lambda x, sigma, labels: GAUSSIAN.consistency(x, sigma, 0.3)  # noqa: E731
    for points in (32, 64, 128):
        made = objective(KIND, noise, points=points)
        networks = Networks(exact, exact, teacher=GAUSSIAN)
        losses.append(made.loss(networks, images, None, each).minimised.mean().item())
    assert slopes(losses) == pytest.approx([4, 4], abs=0.4)
    wrong = power(0.55, 0.3)
    assert made.loss(Networks(wrong, wrong, teacher=GAUSSIAN), images, None, each).minimised.mean() > 1e5 * losses[-1]


@pytest.mark.parametrize("at_once", [None, 2])
def test_its_gradient_is_the_students_alone(at_once: int | None) -> None:
    """d/dp of the mean of (f_p - end)^2 with a constant end, though the teacher has a weight too."""
    p, weight = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.6, 1.0))
    images, each, points = 0.5 * randn(3, *SHAPE), draw(), 5
    made = objective(KIND, points=points, at_once=at_once)
    networks = Networks(power(p), power(p), teacher=lambda x, s, y: weight * GAUSSIAN(x, s))
    losses = made.loss(networks, images, None, each).minimised
    found = torch.autograd.grad(losses.sum(), (p, weight), allow_unused=True)
    assert found[1] is None
    sigmas = [80 * (0.002 / 80) ** (i / points) for i in range(points + 1)]
    path = trajectory(images + 80 * each.noise, sigmas)
    other = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
    each_point = [
        l2(power(other)(x, torch.full((3,), s, dtype=DOUBLE)), path[-1].detach())
        for x, s in zip(path, sigmas, strict=True)
    ]
    (by_hand,) = torch.autograd.grad(torch.stack(each_point[:-1]).mean(0).sum(), other)
    torch.testing.assert_close(found[0], by_hand, rtol=1e-8, atol=0)


def test_labels_go_along_with_every_point() -> None:
    seen = []

    def student(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        seen.append((len(x), labels.tolist()))
        return x

    made = objective(KIND, points=4, at_once=2)
    with torch.no_grad():
        made.loss(Networks(student, student, teacher=GAUSSIAN), torch.zeros(3, *SHAPE), torch.tensor([7, 8, 9]), draw())
    assert seen == [(6, [7, 8, 9, 7, 8, 9])] * 2
