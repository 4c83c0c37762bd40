"""Continuous time against quadrature: the paper's Theorems 3 to 6 for data on a line, and the discrete losses that
converge to them.
"""

import pytest
import torch
from closed_forms import DOUBLE, as_network, randn
from torch import Tensor

from cmdist import build, config
from cmdist.core import distances, noise
from cmdist.core.curricula import Constant
from cmdist.core.exact import Gaussian
from cmdist.core.noise import Denoise, expand, karras_growth, karras_level, karras_sigmas
from cmdist.core.objectives.base import Draw, Networks, Objective
from cmdist.core.objectives.consistency import Consistency, Pairs
from cmdist.core.objectives.continuous import Continuous
from cmdist.core.preconditioning import Model
from cmdist.core.solvers import Step, euler_step
from cmdist.core.studies import gradients
from cmdist.core.studies.fixed_points import hermite
from cmdist.core.studies.line import Line
from cmdist.errors import ConfigError

CONFIG = """
objective: {kind: continuous_training, weighting: uniform}
run: {name: x}
data: {url: x, image_size: 1, channels: 1}
network: {model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8}
optimizer: {lr: 1.0e-4}
train: {steps: 10, global_batch: 4, micro_batch: 4}
"""
M, S, LOW = 0.3, 0.7, 0.002
DATA = Gaussian(M, S)
TEACHER = ["objective.kind=continuous_distillation", "objective.teacher=exact"]


def made(*overrides: str) -> tuple[Objective, config.Config]:
    found = config.parse(CONFIG, overrides)
    return build.objective(found, lambda keys: build.distance(found, keys)), found


def family(power: Tensor) -> Model:
    """m + (x - m) ((s^2 + low^2) / (s^2 + sigma^2))^power: the truth at 1/2, the identity at sigma_min for all."""

    def f(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return M + (x - M) * ((S**2 + LOW**2) / (S**2 + expand(sigma, x) ** 2)) ** power

    return as_network(f, build.model(made()[1], lambda x: x).scalings)


def nodes(sigma: Tensor, training: bool, count: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise levels, images, noise and probabilities: x of p_sigma at Gauss-Hermite nodes, and for training the images
    that may have made it too.
    """
    h, w = hermite(count)
    x = (M + (S**2 + sigma**2).sqrt()[:, None] * h).flatten()
    levels, chances = sigma.repeat_interleave(count), w.repeat(len(sigma)) / len(sigma)
    if not training:
        return levels, torch.zeros_like(x), x / levels, chances
    total = S**2 + levels**2
    images = ((S**2 * x + levels**2 * M) / total)[:, None] + (S * levels / total.sqrt())[:, None] * h
    many, wide = x[:, None].expand_as(images), levels[:, None].expand_as(images)
    return wide.flatten(), images.flatten(), ((many - images) / wide).flatten(), (chances[:, None] * w).flatten()


def pixel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def gradient_of(value: Tensor, power: Tensor) -> float:
    return float(torch.autograd.grad(value, power)[0])


def limit(power: float, *overrides: str, points: int = 2000) -> tuple[float, float]:
    """The loss and its derivative to the power, over uniform places in the grid."""
    objective, _ = made(*overrides)
    training = not overrides
    at = torch.tensor(power, dtype=DOUBLE, requires_grad=True)
    sigma = karras_level((torch.arange(points, dtype=DOUBLE) + 0.5) / points)
    levels, images, z, chances = nodes(sigma, training)
    student = family(at)
    losses = objective.loss(Networks(student, student, None, DATA), pixel(images), None, Draw(levels, pixel(z), 0))
    value = chances @ losses.minimised
    return float(value.detach()), gradient_of(value, at)


def exact_step(denoise: Denoise, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_next: Tensor) -> Tensor:
    """Along the ODE without an error."""
    return DATA.consistency(x, sigma, sigma_next)


def discrete(
    power: float, n: int, step: Step | None = exact_step, distance: distances.Distance = distances.l2
) -> tuple[float, float]:
    """The loss of N noise levels, by a solver or by training (None), and its derivative with the target held fixed."""
    objective = Consistency(Constant(n), karras_sigmas, noise.uniform_index, distance, noise.uniform, step)
    at = torch.tensor(power, dtype=DOUBLE, requires_grad=True)
    grid = karras_sigmas(n, dtype=DOUBLE)
    levels, images, z, chances = nodes(grid[:-1], step is None)
    below = grid[1:].repeat_interleave(len(levels) // (n - 1))
    student = family(at)
    draw = Pairs(levels, pixel(z), 0, sigma_next=below)
    value = chances @ objective.loss(Networks(student, student, None, DATA), pixel(images), None, draw).minimised
    return float(value.detach()), gradient_of(value, at)


@pytest.mark.parametrize(("power", "expected"), [(0.6, 1.384186), (0.4, -17.0528)])
def test_theorem_5_has_the_gradient_of_quadrature_and_discrete_ones_become_it(power: float, expected: float) -> None:
    """(N - 1) gradient: the error falls tenfold from N = 40 to 400, along the exact ODE, by Euler's step, and for
    training, which is Theorem 6.
    """
    found = limit(power, *TEACHER)[1]
    assert found == pytest.approx(expected, rel=1e-5)
    assert limit(power)[1] == pytest.approx(found, rel=1e-9)
    for step in (exact_step, euler_step, None):
        errors = [(n - 1) * discrete(power, n, step)[1] - found for n in (40, 400)]
        assert abs(errors[0] / errors[1]) > 8, (step, errors)


@pytest.mark.parametrize(("n", "cd", "ct"), [(40, 1.4302, 1.3804), (400, 1.3887, 1.3844)])
def test_discrete_gradients_approach_it_from_both_sides(n: int, cd: float, ct: float) -> None:
    """Figures of quadrature made elsewhere, for the exact ODE and for training."""
    assert (n - 1) * discrete(0.6, n)[1] == pytest.approx(cd, abs=6e-5)
    assert (n - 1) * discrete(0.6, n, None)[1] == pytest.approx(ct, abs=6e-5)


def test_at_the_truth_continuous_time_has_no_bias_of_a_finite_n() -> None:
    """Distillation along the exact ODE has none at any N, training has one of O(1/N)."""
    assert abs(limit(0.5, *TEACHER)[1]) < 1e-9 and abs(limit(0.5)[1]) < 1e-9
    assert abs(39 * discrete(0.5, 40)[1]) < 1e-9
    biased = [(n - 1) * discrete(0.5, n, None)[1] for n in (40, 400)]
    assert biased == pytest.approx([-0.069, -0.0060], rel=0.01)


def test_on_gaussian_data_trainings_bias_is_eulers() -> None:
    """Its gradient is that of distillation by Euler's step, at any N and for any student of the family. On a mixture it
    has a term of its own, since its pair is a step of a random walk: of second order, so half as much at twice the N
    once both are multiplied by N - 1.
    """
    for power in (0.5, 0.6):
        for n in (10, 40):
            assert discrete(power, n, None)[1] == pytest.approx(discrete(power, n, euler_step)[1], rel=1e-9)
    line = Line(torch.tensor([-0.8, 0.6], dtype=DOUBLE), 0.2, torch.tensor([0.4, 0.6], dtype=DOUBLE))
    student, own = gradients.student(0.9), []
    for n in (81, 161):
        both = [gradients.gradient(line, student, karras_sigmas(n, dtype=DOUBLE), step) for step in (None, euler_step)]
        own.append((n - 1) * (both[0] - both[1]))
    assert own[0] / own[1] == pytest.approx(2, rel=0.05) and abs(own[0]) > 1e-3


def test_theorem_3_has_the_value_of_quadrature_and_its_gradient_is_its_derivative() -> None:
    through = [*TEACHER, "objective.gradient=through"]
    value, slope = limit(0.6, *through)
    assert value == pytest.approx(0.279098, abs=1e-6)
    h = 1e-4
    assert slope == pytest.approx((limit(0.6 + h, *through)[0] - limit(0.6 - h, *through)[0]) / (2 * h), rel=1e-6)
    for n, expected in ((40, 0.278820), (400, 0.279096)):
        assert (n - 1) ** 2 * discrete(0.6, n)[0] == pytest.approx(expected, abs=2e-6)


def test_theorem_4_has_the_value_of_quadrature_and_its_gradient_is_its_derivative() -> None:
    through = [*TEACHER, "objective.gradient=through", "objective.distance.kind=l1"]
    value, slope = limit(0.6, *through)
    assert value == pytest.approx(0.349194, abs=1e-6)
    h = 1e-4
    assert slope == pytest.approx((limit(0.6 + h, *through)[0] - limit(0.6 - h, *through)[0]) / (2 * h), rel=1e-6)
    for n in (40, 400):
        assert (n - 1) * discrete(0.6, n, exact_step, distances.l1)[0] == pytest.approx(value, abs=1e-6)


def test_the_stopped_losss_value_is_half_the_curvature_of_the_tangent() -> None:
    """g^T H g / 2, the mean square for squared l2, each times lambda / (tau^-1)'."""
    objective, _ = made(*TEACHER, "objective.weighting=density")
    assert isinstance(objective, Continuous)
    levels, images, z, _ = nodes(torch.tensor([0.1, 1.0, 20.0], dtype=DOUBLE), False, 2)
    student = family(torch.tensor(0.8, dtype=DOUBLE))
    losses = objective.loss(Networks(student, student, None, DATA), pixel(images), None, Draw(levels, pixel(z), 0))
    torch.testing.assert_close(losses.minimised, losses.told["tangent"] ** 2)
    other, _ = made(*TEACHER, "objective.weighting=uniform")
    again = other.loss(Networks(student, student, None, DATA), pixel(images), None, Draw(levels, pixel(z), 0))
    torch.testing.assert_close(again.minimised, losses.minimised * karras_growth(levels))


def test_noise_levels_are_uniform_in_the_grid() -> None:
    objective, _ = made("noise.sigma_max=50.0", "noise.rho=5.0", "sampling.times=[50.0,0.8]")
    sigma = objective.draw((40_000, 1, 1, 1), {}, torch.Generator().manual_seed(0)).sigma.double()
    place = (sigma ** (1 / 5) - LOW ** (1 / 5)) / (50 ** (1 / 5) - LOW ** (1 / 5))
    assert place.min() >= 0 and place.max() <= 1 + 1e-6
    histogram = torch.histc(place, 10, 0, 1) / 40_000
    assert (histogram - 0.1).abs().max() < 0.01
    u = torch.linspace(0.05, 0.95, 7, dtype=DOUBLE, requires_grad=True)
    (growth,) = torch.autograd.grad(karras_level(u).sum(), u)
    torch.testing.assert_close(karras_growth(karras_level(u.detach())), growth)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective.distance.kind=l1"], "with the gradient stopped l2 or lpips or features is allowed"),
        (["objective.distance.kind=pseudo_huber"], "distance kind pseudo_huber has no such limit here"),
        (
            [*TEACHER, "objective.gradient=through", "objective.distance={kind: lpips, weights: x}"],
            "with the gradient through the derivative l1 or l2 is allowed",
        ),
    ],
)
def test_a_distance_without_the_limit_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        made(*overrides)


def test_a_gradient_through_the_derivative_refuses_to_compute_activations_again() -> None:
    again = "network.checkpoint_activations=true"
    made(*TEACHER, again)
    with pytest.raises(ConfigError, match="in pieces again: network.checkpoint_activations must be false"):
        made(*TEACHER, "objective.gradient=through", again)


def test_the_curvature_of_features_is_twice_the_square_of_their_jacobian() -> None:
    """H v of d(x, .) at x, against the second derivative of the distance itself."""

    def features(x: Tensor) -> list[Tensor]:
        return [x.sin() * 1.5, (x[:, :, :-1] * x[:, :, 1:]).flatten(1)]

    def squares(x: Tensor, y: Tensor) -> Tensor:
        return sum(((a - b) ** 2).flatten(1).sum(1) for a, b in zip(features(x), features(y), strict=True))  # type: ignore[return-value]

    distance = distances.lpips(squares, features, size=8)
    x, v = randn(2, 1, 4, 4).float(), randn(2, 1, 4, 4, seed=1).float()
    slope = torch.func.grad(lambda y: distance(x, y).sum())
    expected = torch.func.jvp(slope, (x,), (v,))[1]
    torch.testing.assert_close(distance.curvature(x, v), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        distances.l2_curvature(x, v), torch.func.jvp(torch.func.grad(lambda y: distances.l2(x, y).sum()), (x,), (v,))[1]
    )
