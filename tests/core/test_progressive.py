"""Progressive distillation: its stages, and the goal of one step against the teacher's two on closed forms."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from closed_forms import CASES, DOUBLE, GAUSSIAN, MEAN, SHAPE, STD, objective, randn
from torch import Tensor

from cmdist.core import distances
from cmdist.core.noise import Denoise, add_noise, karras_sigmas
from cmdist.core.objectives.base import Acts, Networks
from cmdist.core.objectives.progressive import Halves
from cmdist.core.solvers import euler_step, walk

KIND = "progressive_distillation"


def made(first: int = 4, **keys: object) -> object:
    return objective(KIND, first_steps=first, stage_steps=10, **keys)


def halves(n: int, place: int, b: int = 3) -> Halves:
    """The same step of the grid for each of b images."""
    sigmas = karras_sigmas(2 * n + 1, dtype=DOUBLE)[2 * place : 2 * place + 3]
    sigma, half, end = (s.repeat(b) for s in sigmas)
    return Halves(sigma, randn(b, *SHAPE, seed=2), 0, sigma_half=half, sigma_next=end)


def goal(teacher: Denoise, draw: Halves, images: Tensor) -> Tensor:
    """What the student is compared with."""
    seen: list[Tensor] = []

    def distance(x: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return distances.l2(x, y)

    networks = Networks(GAUSSIAN, GAUSSIAN, teacher=teacher)
    replace(made(), distance=distance).loss(networks, images, None, draw)  # type: ignore[type-var]
    return seen[0]


def test_stages_are_those_of_the_published_runs() -> None:
    """4,096 steps halved after 50,000 steps each, twice as many for N = 2: N = 1 from step 650,000 on."""
    published = objective(KIND)
    begins = {0: 4096, **{50_000 * i: 4096 >> i for i in range(1, 12)}, 650_000: 1}
    assert begins[500_000] == 4 and begins[550_000] == 2
    boundaries = sorted(begins)
    for begin, end in zip(boundaries, [*boundaries[1:], 800_000], strict=True):
        for step in (begin, (begin + end) // 2, end - 1):
            assert published.at(step)["n_steps"] == begins[begin]
            boundary = step == begin and step > 0
            assert published.acts(step) == Acts(teacher_is_student=boundary, zero_moments=boundary)
        assert published.at(begin)["lr_factor"] == 1
    assert published.at(49_999)["lr_factor"] == pytest.approx(1 / 50_000)
    assert published.at(600_000)["lr_factor"] == 0.5  # of N = 2
    assert published.at(10**7) == {"n_steps": 1.0, "lr_factor": 0.0}


def test_a_drawn_step_is_one_of_n_with_its_half_on_the_finer_grid() -> None:
    draw = made().draw((500, 1, 1, 1), {"n_steps": 4.0}, torch.Generator().manual_seed(1))  # type: ignore[attr-defined]
    fine = karras_sigmas(9)
    place = torch.searchsorted(-fine, -draw.sigma)
    assert set(place.tolist()) == {0, 2, 4, 6}
    assert torch.equal(fine[place + 1], draw.sigma_half) and torch.equal(fine[place + 2], draw.sigma_next)
    torch.testing.assert_close(fine[::2], karras_sigmas(5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_one_step_with_the_goal_lands_where_the_teachers_two_do(name: str, place: int) -> None:
    teacher, draw = CASES[name].denoise, halves(4, place)
    images = CASES[name].means[:1].expand(3, *SHAPE)
    x = add_noise(images, draw.sigma, draw.noise)
    landed = euler_step(teacher, x, draw.sigma, None, draw.sigma_half)
    landed = euler_step(teacher, landed, draw.sigma_half, None, draw.sigma_next)
    target = goal(teacher, draw, images)
    once = euler_step(lambda *_: target, x, draw.sigma, None, draw.sigma_next)
    torch.testing.assert_close(once, landed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", [0, 3])
def test_the_loss_of_a_gaussian_is_the_one_written_by_hand(place: int) -> None:
    """The goal is m + kappa (x - m), kappa = 1 - t (A1 A2 - 1) / (t'' - t), A = 1 + (dt/t) (1 - s^2/(s^2 + t^2))."""
    draw, images = halves(4, place), 0.5 * randn(3, *SHAPE)
    t, half, end = (s.view(-1, 1, 1, 1) for s in (draw.sigma, draw.sigma_half, draw.sigma_next))
    x = images + t * draw.noise
    factor = lambda s, to: 1 + (to - s) / s * (1 - STD**2 / (STD**2 + s**2))  # noqa: E731
    kappa = 1 - t * (factor(t, half) * factor(half, end) - 1) / (end - t)
    weight = max(1 / draw.sigma[0].item() ** 2, 1)
    for student in (GAUSSIAN, lambda x, *_: 0.9 * x):
        expected = weight * (student(x, draw.sigma) - MEAN - kappa * (x - MEAN)).square().flatten(1).mean(1)
        networks = Networks(student, student, teacher=GAUSSIAN)
        losses = made().loss(networks, images, None, draw).minimised  # type: ignore[attr-defined]
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
        plain = made(weighting="uniform").loss(networks, images, None, draw).minimised  # type: ignore[attr-defined]
        torch.testing.assert_close(plain, expected / weight, rtol=1e-9, atol=0)


def test_perfect_students_end_where_the_first_teachers_steps_do() -> None:
    """8, 4, 2 and 1 steps of students that are their goals: not at the ODE's end, but at that of 16 Euler steps."""
    images, noise = torch.zeros(3, *SHAPE, dtype=DOUBLE), randn(3, *SHAPE, seed=2)
    teacher: Denoise = GAUSSIAN

    def student(teacher: Denoise, n: int, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        fine = karras_sigmas(2 * n + 1, dtype=DOUBLE)
        place = int(torch.searchsorted(-fine, -sigma[0], side="left"))
        draw = replace(halves(n, place // 2), noise=x / sigma.view(-1, 1, 1, 1))
        return goal(teacher, draw, images)

    for n in (8, 4, 2, 1):
        teacher = partial(student, teacher, n)
    start = 80 * noise
    one = walk(partial(euler_step, teacher), start, karras_sigmas(2, dtype=DOUBLE))
    all_steps = walk(partial(euler_step, GAUSSIAN), start, karras_sigmas(17, dtype=DOUBLE))
    torch.testing.assert_close(one, all_steps, rtol=1e-9, atol=1e-9)
    assert (one - GAUSSIAN.consistency(start, torch.full((3,), 80.0, dtype=DOUBLE), 0.002)).abs().max() > 1e-2


def test_the_teacher_gets_no_gradient() -> None:
    weight = torch.ones((), dtype=DOUBLE, requires_grad=True)
    teacher = lambda x, sigma, labels: weight * GAUSSIAN(x, sigma)  # noqa: E731
    networks = Networks(teacher, teacher, teacher=teacher)
    draw, images = halves(4, 1), 0.5 * randn(3, *SHAPE)
    losses = made().loss(networks, images, None, draw).minimised.sum()  # type: ignore[attr-defined]
    (found,) = torch.autograd.grad(losses, weight)
    x = add_noise(images, draw.sigma, draw.noise)
    gap = GAUSSIAN(x, draw.sigma) - goal(GAUSSIAN, draw, images)
    by_hand = (2 * gap * GAUSSIAN(x, draw.sigma)).flatten(1).mean(1) * (draw.sigma**-2).clamp_min(1)
    torch.testing.assert_close(found, by_hand.sum(), rtol=1e-9, atol=0)
