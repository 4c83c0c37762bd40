"""ECT: its draws, and its gradient on closed forms against one written by hand."""

from math import sqrt

import pytest
import torch
from closed_forms import DOUBLE, MEAN, STD, nodes, objective, pairs, power, randn
from torch import Tensor

from cmdist.core.noise import edm_weight
from cmdist.core.objectives.base import Networks
from cmdist.sections import Noise

KIND = "easy_consistency_tuning"
SIGMA = torch.tensor([0.01, 0.3, 1.3, 4.0, 60.0], dtype=DOUBLE)


@pytest.mark.parametrize(
    ("q", "stage", "sigma", "ratio"),
    [
        *((2, 0, sigma, ratio) for sigma, ratio in ((0.5, 0), (1.0, 0), (2.0, 0.023), (20.0, 0.5), (70.0, 0.5))),
        *((2, 1, sigma, ratio) for sigma, ratio in ((0.4, 0), (40.0, 0.75))),
        *((2, 2, sigma, ratio) for sigma, ratio in ((0.004, 0.375), (70.0, 0.875))),
        *((256, 0, sigma, ratio) for sigma, ratio in ((0.004, 0.9805), (70.0, 0.9961))),
    ],
)
def test_pairs_move_together_from_stage_to_stage(q: float, stage: int, sigma: float, ratio: float) -> None:
    """r / t as published; where that is 0, or below sigma_min, sigma_min is the end."""
    made = objective(KIND, q=q, stage_steps=10)
    at = made.at(10 * stage + 9)
    assert at["stage"] == stage
    there = made.stages.nearer(torch.tensor([sigma], dtype=DOUBLE), at["gap"]).item()
    assert there == pytest.approx(max(ratio * sigma, 0.002), abs=6e-4 * sigma)


@pytest.mark.parametrize(("stage", "share"), [(0, 0.81), (1, 0.58), (2, 0.0), (7, 0.0)])
def test_how_many_draws_end_at_sigma_min(stage: int, share: float) -> None:
    """The published shares are of a law without ends."""
    for range_, tolerance in ((Noise(sigma_min=1e-6, sigma_max=1e6), 0.01), (Noise(), None)):
        made = objective(KIND, range_, stage_steps=1)
        draw = made.draw((40_000, 1, 1, 1), made.at(stage), torch.Generator().manual_seed(1))
        if tolerance:
            ends = (draw.sigma_next <= 1.01e-6).float().mean().item()
            assert ends == pytest.approx(share, abs=tolerance)
    assert draw.sigma.min() > 0.002 and draw.sigma.max() <= 80 and (draw.sigma_next < draw.sigma).all()
    logs = objective(KIND, Noise(sigma_min=1e-6, sigma_max=1e6)).draw((40_000, 1, 1, 1), made.at(0), torch.Generator())
    assert logs.sigma.log().mean().item() == pytest.approx(-1.1, abs=0.04)
    assert logs.sigma.log().std().item() == pytest.approx(2.0, abs=0.04)


def test_a_ratio_has_a_limit_and_a_run_may_be_long() -> None:
    made = objective(KIND, stage_steps=10, max_ratio=0.999)
    assert made.at(60)["gap"] == 2**-7 and made.at(500)["gap"] == pytest.approx(0.001)
    assert objective(KIND, stage_steps=1).at(10**6)["gap"] > 0
    assert objective(KIND, q=256).at(10**6) == {"stage": 0.0, "gap": 1 / 256}


@pytest.mark.parametrize("weighting", ["uniform", "inverse_gap", "edm"])
@pytest.mark.parametrize("p", [0.5, 0.6])
def test_its_gradient_is_the_one_written_by_hand(p: float, weighting: str) -> None:
    """d/dp of E (f_p(x, t) - sg f_p(x', r))^2 for Gaussian data, where E (x - m)(x' - m) = std^2 + t r."""
    made = objective(KIND, distance={"kind": "l2"}, weighting=weighting, stage_steps=1)
    exponent = torch.tensor(p, dtype=DOUBLE, requires_grad=True)
    for stage in (2, 5):
        images, noises, weights = nodes(SIGMA)
        there = made.stages.nearer(SIGMA, made.at(stage)["gap"])
        sigma, sigma_next = (v.repeat_interleave(9) for v in (SIGMA, there))
        f = power(exponent)
        losses = made.loss(Networks(f, f), images, None, pairs(sigma, sigma_next, noises)).minimised
        (gradient,) = torch.autograd.grad((weights * losses).sum(), exponent)
        share = lambda s: (STD**2 + 0.002**2) / (STD**2 + s**2)  # noqa: E731
        here, goal = share(SIGMA) ** p, share(there) ** p
        each = 2 * here * share(SIGMA).log() * ((STD**2 + SIGMA**2) * here - (STD**2 + SIGMA * there) * goal)
        factor = {"uniform": 1.0, "inverse_gap": 1 / (SIGMA - there), "edm": edm_weight(SIGMA, 0.5)}[weighting]
        torch.testing.assert_close(gradient, (factor * each).sum(), rtol=1e-10, atol=0)


def test_at_the_consistency_function_its_gradient_falls_like_the_gap() -> None:
    found = []
    for stage in (6, 7, 8):
        made = objective(KIND, distance={"kind": "l2"}, stage_steps=1)
        exponent = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        images, noises, weights = nodes(SIGMA)
        there = made.stages.nearer(SIGMA, made.at(stage)["gap"])
        draw = pairs(SIGMA.repeat_interleave(9), there.repeat_interleave(9), noises)
        losses = made.loss(Networks(power(exponent), power(exponent)), images, None, draw).minimised
        found.append(torch.autograd.grad((weights * losses).sum(), exponent)[0].abs().item())
    assert [found[1] / found[0], found[2] / found[1]] == pytest.approx([0.5, 0.5], abs=0.03)


def test_its_distance_is_the_norm_of_the_whole_image_without_a_corner() -> None:
    """|f - f^-| / (t - r) by default; where both are equal the gradient is 0 and no NaN."""
    made, images, noise = objective(KIND), randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=2)
    sigma, there = SIGMA[1:4], SIGMA[1:4] / 2
    draw = pairs(sigma, there, noise)
    x, x_next = (images + s.view(-1, 1, 1, 1) * noise for s in (sigma, there))
    losses = made.loss(Networks(power(0.6), power(0.4)), images, None, draw).minimised
    norm = (power(0.6)(x, sigma) - power(0.4)(x_next, there)).flatten(1).norm(dim=1)
    torch.testing.assert_close(losses, norm / (sigma - there), rtol=1e-6, atol=0)

    weight = torch.zeros((), dtype=DOUBLE, requires_grad=True)

    def constant(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.ones_like(x) * sqrt(MEAN) + weight

    (gradient,) = torch.autograd.grad(
        made.loss(Networks(constant, constant), images, None, draw).minimised.sum(), weight
    )
    assert gradient == 0
