"""sCM's tangent and loss against the paper's formulas, in float64, through the table's own objects."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from closed_forms import CASES, as_network, flow, randn
from torch import Tensor, nn

from cmdist import build, config
from cmdist.core.exact import Gaussian
from cmdist.core.noise import expand
from cmdist.core.objectives.base import Networks
from cmdist.core.objectives.scm import Scm, WarmedUp
from cmdist.core.preconditioning import Model
from cmdist.nets.weighting import LARGEST, Weighting

SIGMA_DATA = 0.6
CONFIG = f"""
objective: {{kind: scm_training, sigma_mean: -1.0}}
run: {{name: x}}
data: {{url: x, image_size: 2, channels: 1}}
noise: {{sigma_data: {SIGMA_DATA}, c_noise: angle}}
network: {{model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8}}
optimizer: {{lr: 1.0e-4}}
train: {{steps: 10, global_batch: 4, micro_batch: 4}}
"""
B = 6
SIGMA = torch.tensor([0.003, 0.05, 0.4, 1.3, 10.0, 80.0], dtype=torch.float64)


def made(kind: str, *overrides: str) -> tuple[Scm, config.Config]:
    """The objective of the table, and its configuration."""
    found = config.parse(CONFIG, [f"objective.kind={kind}", *overrides])
    objective = build.objective(found, lambda keys: build.distance(found, keys))
    assert isinstance(objective, Scm)
    return objective, found


def teacher(kind: str) -> list[str]:
    return ["objective.teacher=exact"] if kind == "scm_distillation" else []


KINDS = ["scm_distillation", "scm_training"]
DATA = Gaussian(0.3, 0.7)


def case(seed: int = 0) -> tuple[Tensor, WarmedUp, Tensor]:
    """Images, a draw and x of all noise levels."""
    images, noise = 0.3 + 0.7 * randn(B, 1, 2, 2, seed=seed), randn(B, 1, 2, 2, seed=seed + 1)
    return images, WarmedUp(SIGMA, noise, 0, warm_up=1.0), images + expand(SIGMA, noise) * noise


def student(made: config.Config, function: Callable[..., Tensor]) -> Model:
    """A model with the table's scalings for this configuration."""
    return as_network(function, build.model(made, lambda x: x).scalings, SIGMA_DATA, "angle")


def trig(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's y and theta."""
    theta = (sigma / SIGMA_DATA).atan()
    return expand(theta.cos(), x) * x, theta


class Zero(nn.Module):
    def forward(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tangent_is_cos_theta_times_df_dtheta_of_any_network(kind: str) -> None:
    """Against differences in theta of f(y(theta), theta), with y moving by the teacher's ODE or by dy/dtheta of the
    line between image and noise.
    """
    objective, made_of = made(kind, *teacher(kind))
    weights = randn(5, 4, seed=9)

    def f(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:  # no consistency function
        y, theta = trig(x, sigma)
        told = torch.cat([y.flatten(1), theta[:, None]], 1)
        return (told @ weights).sin().view_as(x) + x

    images, draw, x = case()
    network = student(made_of, f)
    tangent = objective.tangent(Networks(network, network, None, DATA), x, images, None, draw)
    y, theta = trig(x, SIGMA)
    denoised = DATA(x, SIGMA) if kind == "scm_distillation" else images
    slope = (y * expand(theta.cos(), y) - denoised) / expand(theta.sin(), y)  # dy/dtheta
    h, sides = 1e-5 * theta.cos() * theta.sin(), []
    for step in (2 * h, h, -h, -2 * h):
        cos, moved = expand((theta + step).cos(), y), y + expand(step, y) * slope
        sides.append(f(moved / cos, SIGMA_DATA * (theta + step).tan()))
    derivative = (-sides[0] + 8 * sides[1] - 8 * sides[2] + sides[3]) / expand(12 * h, y)
    torch.testing.assert_close(tangent, expand(theta.cos(), y) * derivative, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_tangent_is_zero_at_the_truth(name: str) -> None:
    """The exact consistency function of a Gaussian, a mixture and a finite data set, with the exact teacher; sigma_min
    plays no part, so f here is the end of the ODE at 0.03.
    """
    objective, made_of = made("scm_distillation", *teacher("scm_distillation"))
    data = CASES[name]
    sigma = torch.tensor([0.05, 0.4, 1.3, 4.0], dtype=torch.float64)
    images, noise = data.means[[0] * 4] + data.std * randn(4, 1, 2, 2, seed=1), randn(4, 1, 2, 2, seed=2)
    draw, x = WarmedUp(sigma, noise, 0, warm_up=1.0), images + expand(sigma, noise) * noise
    network = student(made_of, lambda x, sigma, labels: flow(data.denoise, x, sigma, 0.03, steps=100))
    nets = Networks(network, network, None, data.denoise, extra=Zero())
    tangent = objective.tangent(nets, x, images, None, draw)
    cold = objective.tangent(nets, x, images, None, WarmedUp(sigma, noise, 0, warm_up=0.0))
    assert tangent.abs().max() < 1e-6 * cold.abs().max()
    losses = objective.loss(nets, images, None, draw)
    assert losses.told["tangent"].max() < 1e-6


def test_in_training_only_the_tangents_mean_given_x_is_zero_at_the_truth() -> None:
    """Over the images that may have made x, with their probabilities: 20 Gauss-Hermite nodes of a pixel."""
    from closed_forms import ENUMERABLE, posterior

    objective, made_of = made("scm_training")
    data = ENUMERABLE["mixture"]
    sigma = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    x = 0.5 * randn(3, 1, 1, 1, seed=3) + expand(sigma, randn(3, 1, 1, 1)) * randn(3, 1, 1, 1, seed=4)
    images, chances = posterior(data, x, sigma, nodes=20)
    q = len(images)
    network = student(made_of, lambda x, sigma, labels: flow(data.denoise, x, sigma, 0.03, steps=100))
    many = x.expand(q, *x.shape).flatten(0, 1)
    draw = WarmedUp(sigma.repeat(q), torch.zeros_like(many), 0, warm_up=1.0)
    tangent = objective.tangent(Networks(network, network), many, images.flatten(0, 1), None, draw).view(q, 3)
    assert (chances * tangent).sum(0).abs().max() < 1e-7
    assert (chances * tangent.square()).sum(0).sqrt().min() > 0.01


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_the_loss_is_that_of_algorithm_1(norm: str) -> None:
    """Its value and its gradient to F, written out: ours is minus theirs, and D counts pixels."""
    objective, made_of = made("scm_training", f"objective.tangent_norm={norm}", "objective.tangent_c=0.2")
    images, draw, x = case()
    raw = randn(B, 1, 2, 2, seed=5).requires_grad_()
    free = Model(lambda u, c_noise, labels: raw, build.model(made_of, lambda x: x).scalings)
    bare = student(made_of, lambda x, sigma, labels: x / (1 + expand(sigma, x)))
    weight = torch.linspace(-1, 1, B, dtype=torch.float64)
    nets = Networks(free, bare, extra=lambda sigma: weight)
    losses = objective.loss(nets, images, None, draw)
    g = objective.tangent(nets, x, images, None, draw)
    size = g.flatten(1).norm(dim=1) / (1 if norm == "l2" else sqrt(4))
    normalised = g / expand(size + 0.2, g)
    torch.testing.assert_close(losses.minimised, weight.exp() * normalised.square().flatten(1).sum(1) / 4 - weight)
    torch.testing.assert_close(losses.told["tangent"], g.flatten(1).norm(dim=1) / 2)
    (gradient,) = torch.autograd.grad(losses.minimised.sum(), raw)
    torch.testing.assert_close(gradient, 2 * expand(weight.exp(), g) * normalised / 4)


def test_the_warm_up_takes_in_the_second_term() -> None:
    objective, made_of = made("scm_training", "objective.warm_up_steps=100")
    assert [objective.at(step)["warm_up"] for step in (0, 25, 100, 1000)] == [0.0, 0.25, 1.0, 1.0]
    assert made("scm_training", "objective.warm_up_steps=0")[0].at(0)["warm_up"] == 1.0
    images, draw, x = case()
    bare = student(made_of, lambda x, sigma, labels: x / (1 + expand(sigma, x)))
    parts = [
        objective.tangent(Networks(bare, bare), x, images, None, WarmedUp(SIGMA, draw.noise, 0, warm_up=w))
        for w in (0.0, 0.5, 1.0)
    ]
    torch.testing.assert_close(parts[1], (parts[0] + parts[2]) / 2)
    y, theta = trig(x, SIGMA)
    cos, sin = expand(theta.cos(), y), expand(theta.sin(), y)
    noise = SIGMA_DATA * draw.noise
    expected = -(cos**2) * (-SIGMA_DATA * bare.raw(x, SIGMA) - (cos * noise - sin * images))  # F^- is minus ours
    torch.testing.assert_close(parts[0], expected, rtol=1e-9, atol=1e-9)
    drawn = objective.draw((4, 1, 2, 2), objective.at(25), torch.Generator().manual_seed(0))
    assert drawn.warm_up == 0.25


def test_noise_levels_are_lognormal() -> None:
    objective = made("scm_training", "objective.sigma_mean=-0.5", "objective.sigma_std=1.2")[0]
    logs = objective.draw((50_000, 1, 1, 1), objective.at(0), torch.Generator().manual_seed(1)).sigma.log()
    assert logs.mean().item() == pytest.approx(-0.5, abs=0.02) and logs.std().item() == pytest.approx(1.2, abs=0.02)


def test_a_tangent_that_is_not_finite_makes_the_gradient_so() -> None:
    objective, made_of = made("scm_training")
    images, draw, _ = case()
    for value in (float("inf"), float("nan")):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        whole = Model(lambda u, c_noise, labels: scale * u, build.model(made_of, lambda x: x).scalings)  # noqa: B023
        broken = student(made_of, lambda x, sigma, labels: x * torch.where(expand(sigma, x) > 50, value, 1.0))  # noqa: B023
        losses = objective.loss(Networks(whole, broken, extra=Zero()), images, None, draw)
        assert losses.minimised.isfinite().tolist() == [True] * (B - 1) + [False]
        losses.minimised.mean().backward()
        assert not scale.grad.isfinite()


def test_a_weighting_learns_the_logarithm_of_the_mean_error() -> None:
    """exp(w) error - w is smallest at w = -ln error; at initialization w = 0, and it never leaves its range."""
    torch.manual_seed(0)
    head = Weighting()
    sigma = torch.logspace(-2, 1.9, 64)
    assert head(sigma).abs().max() == 0
    error = 1 / (1 + sigma)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weight = head(sigma)
        (weight.exp() * error - weight).mean().backward()
        optimizer.step()
    torch.testing.assert_close(head(sigma), -error.log(), atol=0.05, rtol=0)
    nn.init.constant_(head.out.bias, 1e6)
    assert head(sigma).max() <= LARGEST
