"""MeanFlow, improved MeanFlow and Lagrangian self-distillation against their identities in flow-matching time."""

from collections.abc import Callable

import pytest
import torch
from closed_forms import DOUBLE, GAUSSIAN, MEAN, STD, as_network, nodes, objective, randn
from torch import Tensor

from cmdist.core.flow import flow_time, velocity
from cmdist.core.noise import expand
from cmdist.core.objectives.base import Networks
from cmdist.core.objectives.mean_flow import Jumps, Perceptual, weighted
from cmdist.core.preconditioning import Model, edm_scalings, flow_scalings
from cmdist.core.studies.fixed_points import hermite
from cmdist.kinds.mean_flows import MeanFlows
from cmdist.kinds.objectives import OBJECTIVES
from cmdist.sections import Noise

KINDS = ["mean_flow", "improved_mean_flow", "lagrangian"]
SIGMA = torch.tensor([0.3, 1.3, 4.0, 60.0, 2.0], dtype=DOUBLE)
NEXT = torch.tensor([0.002, 0.5, 0.1, 1.0, 2.0], dtype=DOUBLE)  # the last: flow matching
IMAGES, NOISE = 0.5 * randn(5, 1, 2, 2), randn(5, 1, 2, 2, seed=2)
DRAW = Jumps(SIGMA, NOISE, 0, sigma_next=NEXT)
A, R = (flow_time(s).view(-1, 1, 1, 1) for s in (SIGMA, NEXT))
Y, V = (1 - A) * IMAGES + A * NOISE, NOISE - IMAGES


def some(x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    """Nobody's mean denoiser, other at every pair of noise levels."""
    s, t = expand(sigma, x), expand(sigma_next, x)
    return (0.3 * x + 0.2 * t.sqrt() + (s * x / (1 + s)).sin()) / (1 + s) + 0.1 / (1 + t)


def other(x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    return 0.5 * some(x, sigma, labels, sigma_next) + 0.1


def model(function: Callable[..., Tensor]) -> Model:
    return as_network(function, edm_scalings())


def mean_velocity(denoise: Callable[..., Tensor], y: Tensor, r: Tensor, a: Tensor) -> Tensor:
    """u(y, r, a), the mean velocity that a mean denoiser stands for: D = y - a u."""
    x, sigma, sigma_next = y / (1 - a), (a / (1 - a)).flatten(), (r / (1 - r)).flatten()
    return (y - denoise(x, sigma, None, sigma_next)) / a


def goal(kind: str, denoise: Callable[..., Tensor]) -> Tensor:
    """What u is compared with, in the papers' words, by derivatives in their variables."""

    def u(y: Tensor, r: Tensor, a: Tensor) -> Tensor:
        return mean_velocity(denoise, y, r, a)

    if kind == "lagrangian":
        u_now, du = torch.func.jvp(lambda r: u(Y, r, A), (R,), (torch.ones_like(R),))
        there = Y - (A - R) * u_now
        return torch.where(A == R, V, u(there, R, R) + (A - R) * du)
    along = V if kind == "mean_flow" else u(Y, A, A)
    du = torch.func.jvp(lambda y, a: u(y, R, a), (Y, A), (along, torch.ones_like(A)))[1]
    return V - (A - R) * du


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers_formula(kind: str) -> None:
    """The student and the bare student are different, so that each is where it belongs."""
    losses = objective(kind, power=0.75, c=0.02).loss(Networks(model(some), model(other)), IMAGES, None, DRAW)
    trained = other if kind == "lagrangian" else some  # its one pass with gradient is the derivative's
    gap = mean_velocity(trained, Y, R, A) - goal(kind, other)
    square = gap.square().flatten(1).sum(1)
    torch.testing.assert_close(losses.minimised, square / (square + 0.02) ** 0.75, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(losses.told["error"], square / 4, rtol=1e-7, atol=1e-9)
    assert losses.told["tangent"][-1].abs() < 1e-9 and (losses.told["tangent"][:-1] > 1e-3).all()


def test_the_lagrangian_gradient_goes_through_the_derivative_and_not_through_the_velocity() -> None:
    """For a student that is w of a network, by differences: v(X, r) and the weight stay, u - (a - r) du/dr moves."""
    w = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    student = model(lambda x, s, labels, t: w * some(x, s, labels, t))
    losses = objective("lagrangian", power=1.0, c=0.02).loss(Networks(student, student), IMAGES, None, DRAW)
    (found,) = torch.autograd.grad(losses.minimised.sum(), w)

    def moving(w: float) -> Tensor:
        def u(r: Tensor) -> Tensor:
            return mean_velocity(lambda x, s, labels, t: w * some(x, s, labels, t), Y, r, A)

        value, du = torch.func.jvp(u, (R,), (torch.ones_like(R),))
        return value - (A - R) * du

    fixed = lambda x, s, labels, t: 0.8 * some(x, s, labels, t)  # noqa: E731
    gap = mean_velocity(fixed, Y, R, A) - goal("lagrangian", fixed)
    slope = (moving(0.9) - moving(0.7)) / 0.2
    expected = 2 * (gap * slope).flatten(1).sum(1) / (gap.square().flatten(1).sum(1) + 0.02)
    torch.testing.assert_close(found, expected.sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", ["mean_flow", "improved_mean_flow"])
def test_neither_goal_nor_weight_has_a_gradient(kind: str) -> None:
    """d/dw of S / (sg S + c) for a student that is w of a network, the goal's too."""
    w = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    student = model(lambda x, s, labels, t: w * some(x, s, labels, t))
    losses = objective(kind, power=1.0, c=0.02).loss(Networks(student, student), IMAGES, None, DRAW)
    (found,) = torch.autograd.grad(losses.minimised.sum(), w)
    fixed = lambda x, s, labels, t: 0.8 * some(x, s, labels, t)  # noqa: E731
    gap = mean_velocity(fixed, Y, R, A) - goal(kind, fixed)
    slope = -some(Y / (1 - A), SIGMA, None, NEXT) / A
    expected = 2 * (gap * slope).flatten(1).sum(1) / (gap.square().flatten(1).sum(1) + 0.02)
    torch.testing.assert_close(found, expected.sum(), rtol=1e-7, atol=0)


def expectation(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """At a Gaussian's exact mean velocity: the squared error at nodes of image and noise (B, 16), their probabilities,
    and y.
    """
    images, noises, weights = nodes(SIGMA, n=4)
    sigma, sigma_next = (s.repeat_interleave(16) for s in (SIGMA, NEXT))
    exact = model(GAUSSIAN)
    made = objective(kind)
    made_loss = made.loss(Networks(exact, exact), images, None, Jumps(sigma, noises, 0, sigma_next=sigma_next))
    found = made_loss.told["error"].view(5, 16)
    a = flow_time(sigma)
    y = ((1 - a) * images.flatten() + a * noises.flatten()).view(5, 16)
    return found, weights.view(5, 16), y


def test_at_the_exact_flow_map_the_lagrangian_identity_holds_for_each_image() -> None:
    found, _, _ = expectation("lagrangian")
    assert found[:-1].max() < 1e-20  # the last is flow matching, which has the velocity's variance
    assert found[-1].mean() > 0.1


def test_improved_mean_flows_loss_at_the_truth_is_the_irreducible_variance() -> None:
    """u + (a - r) du/da is then the velocity v*, so the gap is v* - v: Var(v given y) = std^2 / A(a)^2 for every r."""
    found, weights, _ = expectation("improved_mean_flow")
    a = flow_time(SIGMA)
    floor = STD**2 / ((1 - a) ** 2 * STD**2 + a**2)
    torch.testing.assert_close((found * weights).sum(1), floor, rtol=1e-9, atol=0)


def test_mean_flows_gap_at_the_truth_has_mean_zero_given_y() -> None:
    """Of each y, over the images that may have made it: the goal is right on average, with v of one image only so."""
    h, w = hermite(12)
    sigma, sigma_next = SIGMA[:4], NEXT[:4]
    total = STD**2 + sigma**2
    x = MEAN + total.sqrt() * randn(4, seed=8)
    centre, spread = (STD**2 * x + sigma**2 * MEAN) / total, STD * sigma / total.sqrt()
    images = (centre[:, None] + spread[:, None] * h).view(-1, 1, 1, 1)
    wide, wide_next = (s.repeat_interleave(12) for s in (sigma, sigma_next))
    noises = (x.repeat_interleave(12).view(-1, 1, 1, 1) - images) / expand(wide, images)
    scale = torch.zeros(48, dtype=DOUBLE, requires_grad=True)
    exact = model(GAUSSIAN)

    def shifted(x: Tensor, s: Tensor, labels: Tensor | None, t: Tensor) -> Tensor:
        """u + scale: the loss's derivative to scale at 0 is 2 gap."""
        return GAUSSIAN(x, s, labels, t) - expand(flow_time(s) * scale, x)

    made = objective("mean_flow", power=0.0)
    losses = made.loss(Networks(model(shifted), exact), images, None, Jumps(wide, noises, 0, sigma_next=wide_next))
    (gap,) = torch.autograd.grad(losses.minimised.sum(), scale)
    assert (gap.view(4, 12) @ w).abs().max() < 1e-9
    assert ((gap.view(4, 12) ** 2) @ w).sqrt().min() > 0.1


@pytest.mark.parametrize("sigma_data", [0.5, 0.3])
def test_the_networks_parametrisation_changes_nothing(sigma_data: float) -> None:
    """A network that gives EDM's mixture, the velocity or the image: the same mean denoiser, so the same loss."""
    results = []
    for scalings in (edm_scalings(sigma_data), flow_scalings(False), flow_scalings(True)):
        made = as_network(some, scalings)
        x = Y / (1 - A)
        torch.testing.assert_close(made(x, SIGMA, None, NEXT), some(x, SIGMA, None, NEXT))
        results.append([objective(k).loss(Networks(made, made), IMAGES, None, DRAW).told["error"] for k in KINDS])
    for result in results[1:]:
        for mine, first in zip(result, results[0], strict=True):
            torch.testing.assert_close(mine, first, rtol=1e-6, atol=1e-9)
    raw = as_network(some, flow_scalings(False)).raw(x, SIGMA, None, NEXT)
    torch.testing.assert_close(raw, mean_velocity(some, Y, R, A))
    torch.testing.assert_close(
        as_network(some, flow_scalings(True)).raw(x, SIGMA, None, NEXT), some(x, SIGMA, None, NEXT)
    )
    noise = Noise(sigma_data=sigma_data)
    for kind in KINDS:
        section = OBJECTIVES[kind].section
        for prediction, scalings in (("edm", edm_scalings(sigma_data)), ("velocity", flow_scalings(False))):
            row = OBJECTIVES[kind].scalings(section(kind=kind, prediction=prediction), noise)
            assert all(torch.equal(p, q) for p, q in zip(row(SIGMA), scalings(SIGMA), strict=True))


def test_the_velocity_at_equal_times_is_the_denoisers() -> None:
    x = Y / (1 - A)
    torch.testing.assert_close(
        velocity(x, SIGMA, GAUSSIAN(x, SIGMA, None, SIGMA)), velocity(x, SIGMA, GAUSSIAN(x, SIGMA))
    )


def drawn(levels: str) -> Jumps:
    made = objective("mean_flow", Noise(sigma_min=1e-6, sigma_max=1e6), levels={"kind": levels})
    found: Jumps = made.draw((40_000, 1, 1, 1), made.at(0), torch.Generator().manual_seed(1))
    return found


def test_sorted_levels_are_mean_flows_and_an_exact_part_is_one() -> None:
    draw = drawn("sorted")
    equal = draw.sigma == draw.sigma_next
    assert equal[:30_000].all() and not equal[30_000:].any()  # 75 %
    logs = torch.stack([draw.sigma, draw.sigma_next])[:, 30_000:].log()
    assert logs.mean().item() == pytest.approx(-0.4, abs=0.02) and logs.std().item() == pytest.approx(1, abs=0.02)
    assert (logs[0] > logs[1]).all()


def test_clipped_levels_are_those_of_its_code_for_cifar10() -> None:
    """a = sigmoid of a normal with mean -0.6, r of one with -4; a quarter equal, the rest clipped and not exchanged."""
    draw = drawn("clipped")
    logs, logs_next = draw.sigma.log(), draw.sigma_next.log()
    assert logs.mean().item() == pytest.approx(-0.6, abs=0.03) and logs.std().item() == pytest.approx(1.6, abs=0.03)
    assert (logs_next <= logs).all()
    above = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor((-0.6 + 4) / (1.6 * 2**0.5)))  # r below a
    equal = (logs == logs_next).float().mean().item()
    assert equal == pytest.approx(0.25 + 0.75 * (1 - above.item()), abs=0.01)
    apart = logs_next[logs_next < logs]
    assert apart.mean().item() < -4  # those of the second law that were below


def test_levels_stay_between_the_noise_levels() -> None:
    for kind in ("sorted", "clipped"):
        made = objective("lagrangian", levels={"kind": kind, "std": 6.0})
        draw = made.draw((10_000, 1, 1, 1), {}, torch.Generator())
        assert draw.sigma_next.min() >= 0.002 and draw.sigma.max() <= 80


def test_the_adaptive_weight_takes_the_error_once() -> None:
    """S / (S + c)^p with S itself: not its square, as a public port has it."""
    error = torch.tensor([0.1, 2.0], requires_grad=True)
    torch.testing.assert_close(weighted(error, 0.75, 1e-3), error / (error + 1e-3) ** 0.75)
    (slope,) = torch.autograd.grad(weighted(error, 0.75, 1e-3).sum(), error)
    torch.testing.assert_close(slope, 1 / (error.detach() + 1e-3) ** 0.75)


def test_a_perceptual_distance_is_added_at_low_noise_levels() -> None:
    """Pixel MeanFlow: of the mean denoiser to the image, up to the given sigma, with gradient to the student."""
    plain = objective("mean_flow")
    seen = type(plain)(
        plain.improved, plain.levels, plain.power, plain.c,
        Perceptual(lambda x, y: (x - y).abs().flatten(1).mean(1), 0.4, 3.0),
    )  # fmt: skip
    nets = Networks(model(some), model(other))
    more = seen.loss(nets, IMAGES, None, DRAW).minimised - plain.loss(nets, IMAGES, None, DRAW).minimised
    apart = (some(Y / (1 - A), SIGMA, None, NEXT) - IMAGES).abs().flatten(1).mean(1)
    torch.testing.assert_close(more, torch.where(SIGMA <= 3, 0.4 * apart, 0.0), rtol=1e-6, atol=1e-9)


def test_another_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance kind l1: l2 is the velocity's squared error alone, and lpips"):
        MeanFlows(kind="mean_flow", distance={"kind": "l1"})
