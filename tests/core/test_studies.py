"""What consistency training and several steps of sampling do to data on a line, where everything is known."""

from functools import cache
from math import log2

import pytest
import torch
from closed_forms import DOUBLE, randn
from scipy import stats
from torch import Tensor
from torch.special import ndtr

from cmdist.core import exact
from cmdist.core.noise import karras_level, karras_sigmas
from cmdist.core.solvers import Step, euler_step, heun_step
from cmdist.core.studies import fixed_points, gradients, laws, learning
from cmdist.core.studies.fixed_points import distillation, training, variance_by_level
from cmdist.core.studies.laws import Law, total_variation, wasserstein
from cmdist.core.studies.line import Line, interpolate, masses

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
TWO = torch.tensor([-1.0, 1.0], dtype=DOUBLE)
SHARES = torch.tensor([0.3, 0.7], dtype=DOUBLE)
APART, TOUCHING = Line(TWO, 0.2, SHARES), Line(TWO, 0.6, SHARES)
ONE = Line(torch.tensor([0.4], dtype=DOUBLE), 0.5, torch.ones(1, dtype=DOUBLE))


def grid(n: int) -> list[float]:
    return karras_sigmas(n, dtype=DOUBLE).tolist()


@cache
def points(line: Line) -> Tensor:
    return line.scores(SIGMA_MIN, 500, 300)


@cache
def tables(line: Line, n: int) -> list[Tensor]:
    return training(line, grid(n), points(line), nodes=10)


# ---- the line ----


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
@pytest.mark.parametrize("line", [APART, TOUCHING, ONE])
def test_quantiles_invert_the_distribution_function_in_both_tails(line: Line, sigma: float) -> None:
    z = torch.linspace(-7, 7, 101, dtype=DOUBLE)
    x = line.quantile(z, sigma)
    parts = [stats.norm(m, line.spread(sigma)) for m in line.means.tolist()]
    for score, at in zip(z.tolist(), x.tolist(), strict=True):
        tail = [part.cdf(at) if score < 0 else part.sf(at) for part in parts]
        assert sum(w * t for w, t in zip(line.weights.tolist(), tail, strict=True)) == pytest.approx(
            stats.norm.cdf(-abs(score)), rel=1e-8
        )
    height = 1e-4 * line.spread(sigma)
    slope = (line.tail(x + height, sigma, x < -1e9) - line.tail(x - height, sigma, x < -1e9)) / (2 * height)
    torch.testing.assert_close(line.density(x, sigma), slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("line", [APART, TOUCHING, ONE])
def test_the_map_between_quantiles_is_the_end_of_the_ode(line: Line) -> None:
    """The exact consistency function is invariant along its paths, and keeps points at sigma_min where they are."""
    x, sigma = line.quantile(torch.linspace(-2, 2, 9, dtype=DOUBLE), 3.0), torch.full((9,), 3.0, dtype=DOUBLE)
    end = line.consistency(x, 3.0, SIGMA_MIN)
    solved = exact.consistency(line.denoiser, x[:, None], sigma, SIGMA_MIN, steps=3000)[:, 0]
    torch.testing.assert_close(end, solved, rtol=0, atol=2e-5)
    half_way = exact.consistency(line.denoiser, x[:, None], sigma, 0.4, steps=3000)[:, 0]
    torch.testing.assert_close(line.consistency(half_way, 0.4, SIGMA_MIN), end, rtol=0, atol=2e-5)
    torch.testing.assert_close(line.consistency(end, SIGMA_MIN, SIGMA_MIN), end, rtol=0, atol=1e-7)


def test_interpolation_is_exact_for_parabolas_and_straight_outside() -> None:
    x = torch.tensor([-1.0, -0.2, 0.1, 0.9, 2.0, 2.5], dtype=DOUBLE)
    at = torch.linspace(-0.2, 2.0, 50, dtype=DOUBLE)
    torch.testing.assert_close(interpolate(x, x**2 - x, at), at**2 - at, rtol=0, atol=1e-13)
    assert interpolate(x, 3 * x, torch.tensor([-9.0, 9.0], dtype=DOUBLE)).tolist() == pytest.approx([-27, 27])


# ---- the fixed points ----


def test_the_chain_keeps_every_marginal() -> None:
    """X ~ p_sigma gives X_next ~ p_sigma_next, for steps of any size; and Karras' steps down to the data."""
    h, w = fixed_points.hermite(12)
    for line in (APART, TOUCHING, ONE):
        z = line.scores(SIGMA_MIN, 3000, 300)
        for sigma, sigma_next in [(80.0, 1.0), (2.0, 0.3), (0.5, 0.4), (0.05, 0.002)]:
            x = line.quantile(z, sigma)
            weights, means, std = fixed_points.chain_moments(line, x, sigma, sigma_next)
            at = line.quantile(torch.linspace(-3, 3, 13, dtype=DOUBLE), sigma_next)
            below = (ndtr((at - means[..., None]) / std) * weights[..., None]).sum(1)
            assert (masses(z) @ below).tolist() == pytest.approx(
                ndtr(torch.linspace(-3, 3, 13, dtype=DOUBLE)).tolist(), abs=2e-5
            )
    assert (w @ h**22).item() == pytest.approx(13749310575)  # 21!!, the quadrature that the tables are made with


@pytest.mark.parametrize("n", [18, 80])
@pytest.mark.parametrize("line", [APART, TOUCHING])
def test_training_keeps_the_mean_and_loses_variance(line: Line, n: int) -> None:
    """Var f_N(X_N) + E Var(X_1 | X_N) = Var(X_1); the second part adds up over the levels, none of it negative."""
    found, weight = tables(line, n), masses(points(line))
    mean = weight @ found[0]
    assert mean.item() == pytest.approx(float(line.weights @ line.means), abs=1e-5)
    lost = variance_by_level(found, points(line))
    assert (lost > -1e-9).all()
    # independently of the tables: Var(X_1 | X_N) by running the chain's second moment
    square = second_moment(line, grid(n), points(line))
    inside = (weight @ (square - found[0] ** 2)).item()
    assert inside == pytest.approx(lost.sum().item(), abs=1e-4)
    assert (weight @ (found[0] - mean) ** 2).item() + inside == pytest.approx(line.variance + SIGMA_MIN**2, abs=1e-4)
    assert inside > 0.02


def second_moment(line: Line, sigmas: list[float], z: Tensor) -> Tensor:
    """E[X_1^2 | X_N] along the same chain."""
    h, w = fixed_points.hermite(10)
    x_next = line.quantile(z, sigmas[-1])
    table = x_next**2
    for sigma, sigma_next in zip(sigmas[-2::-1], sigmas[:0:-1], strict=True):
        x = line.quantile(z, sigma)
        weights, means, std = fixed_points.chain_moments(line, x, sigma, sigma_next)
        table = ((interpolate(x_next, table, means[..., None] + std * h) @ w) * weights).sum(-1)
        x_next = x
    return table


@pytest.mark.parametrize("n", [18, 80])
def test_for_a_gaussian_training_is_distillation_with_euler(n: int) -> None:
    z = points(ONE)
    euler = distillation(ONE.denoiser, euler_step, grid(n), ONE.quantile(z, SIGMA_MAX))
    torch.testing.assert_close(tables(ONE, n)[0], euler, rtol=0, atol=1e-9)
    spread = fixed_points.gaussian_outputs(0.5, grid(n), through=False)[-1]
    assert ((euler[-1] - euler[0]) / (z[-1] - z[0])).item() == pytest.approx(spread.item(), rel=1e-9)


def errors(line: Line, f: Tensor, part: Tensor) -> float:
    return float((masses(points(line)) * part) @ (f - line.quantile(points(line), SIGMA_MIN)).abs())


def slopes(values: list[float]) -> list[float]:
    return [log2(a / b) for a, b in zip(values, values[1:], strict=False)]


COUNTS = [80, 160, 320]


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
@pytest.mark.parametrize("line", [APART, TOUCHING, ONE])
def test_distillations_error_falls_with_the_solvers_order(line: Line, step: Step, order: int) -> None:
    x = line.quantile(points(line), SIGMA_MAX)
    found = [errors(line, distillation(line.denoiser, step, grid(n), x), x * 0 + 1) for n in COUNTS]
    assert slopes(found) == pytest.approx([order] * 2, abs=0.1)


def test_trainings_error_falls_with_order_1_where_the_function_is_smooth() -> None:
    smooth = (TOUCHING.quantile(points(TOUCHING), SIGMA_MIN).abs() > 1).double()
    found = [errors(TOUCHING, tables(TOUCHING, n)[0], smooth) for n in COUNTS]
    assert slopes(found) == pytest.approx([1, 1], abs=0.1)


def test_trainings_error_falls_towards_one_half_across_a_boundary() -> None:
    """Where Euler's is of order 1 on the same data: the walk crosses the boundary, the curve does not."""
    everywhere = torch.ones_like(points(APART))
    found = slopes([errors(APART, tables(APART, n)[0], everywhere) for n in COUNTS])
    assert found == pytest.approx([0.57, 0.57], abs=0.06)
    assert found[1] < found[0]


def test_the_gradient_through_the_target_loses_spread_that_no_number_of_levels_brings_back() -> None:
    """The loss's minimiser over all levels against the fixed point, and against a search of its own."""
    held = [float(fixed_points.gaussian_outputs(0.5, grid(n), through=False)[-1]) for n in (18, 80, 320)]
    through = [float(fixed_points.gaussian_outputs(0.5, grid(n), through=True)[-1]) for n in (18, 80, 320)]
    assert held == sorted(held)
    assert held[-1] == pytest.approx(0.5, rel=0.03)
    assert max(through) < 0.7 * 0.5
    rho = fixed_points.gaussian_correlations(0.5, grid(18))
    free = torch.zeros(17, dtype=DOUBLE, requires_grad=True)
    first = torch.tensor([(0.25 + SIGMA_MIN**2) ** 0.5], dtype=DOUBLE)
    search = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def loss() -> Tensor:
        search.zero_grad()
        a = torch.cat([first, free])
        value = (a[1:] ** 2 + a[:-1] ** 2 - 2 * rho * a[1:] * a[:-1]).sum()
        value.backward()
        return value

    search.step(loss)
    assert free[-1].item() == pytest.approx(through[0], rel=1e-5)


# ---- laws ----


def test_distances_between_gaussians_are_the_closed_forms() -> None:
    z = torch.linspace(-7, 7, 4001, dtype=DOUBLE)
    a, b = Law(0.3 + 0.5 * z, ndtr(z)), Law(-0.1 + 0.8 * z[::2], ndtr(z[::2]))
    assert wasserstein(a, b, 2) == pytest.approx((0.4**2 + 0.3**2) ** 0.5, abs=1e-5)
    assert wasserstein(a, Law(1.0 + 0.5 * z, ndtr(z)), 1) == pytest.approx(0.7, abs=1e-9)
    x = torch.linspace(-9, 9, 2001, dtype=DOUBLE)
    shifted = Law(1.0 + 0.5 * z, ndtr(z))
    closed = 2 * stats.norm.cdf(0.35 / (0.25 + 0.49) ** 0.5) - 1
    assert total_variation(a, shifted, 0.7, x) == pytest.approx(closed, abs=1e-5)
    below, density = a.noised(x, 1.2), a.noised_density(x, 1.2)
    torch.testing.assert_close(below, ndtr((x - 0.3) / 1.3), rtol=0, atol=1e-5)
    torch.testing.assert_close(density, torch.from_numpy(stats.norm.pdf(x, 0.3, 1.3)), rtol=0, atol=1e-5)


def prior(line: Line) -> Law:
    return Law(SIGMA_MAX * points(line), ndtr(points(line)))


def law_after(line: Line, n: int, times: list[float], start: Law) -> Law:
    by_level = dict(zip(grid(n), tables(line, n), strict=True))
    return laws.multistep(start, times, SIGMA_MIN, lambda t: (line.quantile(points(line), t), by_level[t]))


def exactly_after(line: Line, times: list[float], start: Law) -> Law:
    end = line.quantile(points(line), SIGMA_MIN)
    return laws.multistep(start, times, SIGMA_MIN, lambda t: (line.quantile(points(line), t), end))


@pytest.mark.parametrize("line", [APART, TOUCHING])
def test_further_steps_of_the_exact_function_change_nothing(line: Line) -> None:
    """From p_T; the mismatch of N(0, T^2) to p_T is all that is seen from there, and the second step forgets some."""
    data = laws.of_line(line, SIGMA_MIN, points(line))
    start = laws.of_line(line, SIGMA_MAX, points(line))
    for times in ([80.0], [80.0, 2.0], [80.0, 0.3], [80.0, 5.0, 1.0, 0.3, 0.1]):
        assert wasserstein(exactly_after(line, times, start), data, 2) < 3e-4
    one, two = (wasserstein(exactly_after(line, times, prior(line)), data, 2) for times in ([80.0], [80.0, 2.0]))
    assert 2e-3 < two < one < 0.05


def test_a_second_step_repairs_training_and_not_distillation() -> None:
    data = laws.of_line(APART, 0.0, points(APART))
    levels = grid(18)
    one = wasserstein(law_after(APART, 18, [80.0], prior(APART)), data, 2)
    two = {tau: wasserstein(law_after(APART, 18, [80.0, tau], prior(APART)), data, 2) for tau in levels[1:-1]}
    best = min(two, key=lambda tau: two[tau])
    assert best == pytest.approx(0.296, abs=1e-3)
    assert two[best] < 0.65 * one
    assert all(two[tau] > 0.95 * one for tau in levels[1:-1] if tau > 1.9 or tau < 0.02)

    def euler(level: float) -> tuple[Tensor, Tensor]:
        x = APART.quantile(points(APART), level)
        return x, distillation(APART.denoiser, euler_step, levels[levels.index(level) :], x)

    alone = wasserstein(laws.multistep(prior(APART), [80.0], SIGMA_MIN, euler), data, 2)
    again = [wasserstein(laws.multistep(prior(APART), [80.0, tau], SIGMA_MIN, euler), data, 2) for tau in levels[1:-1]]
    assert min(again) > 0.97 * alone


def test_in_one_step_w2_is_the_root_mean_square_error() -> None:
    """Both functions rise, so equal quantiles are equal points."""
    f, true = tables(APART, 18)[0], APART.quantile(points(APART), SIGMA_MIN)
    start = laws.of_line(APART, SIGMA_MAX, points(APART))
    w2 = wasserstein(law_after(APART, 18, [80.0], start), laws.of_line(APART, SIGMA_MIN, points(APART)), 2)
    assert w2 == pytest.approx((masses(points(APART)) @ (f - true) ** 2).item() ** 0.5, rel=1e-3)


@pytest.mark.parametrize("n", [18, 80])
def test_noise_forgets_at_least_as_fast_as_the_bound(n: int) -> None:
    """TV(p * N(0, tau^2), q * N(0, tau^2)) <= W1 / (tau sqrt(2 pi)) <= W2 / (2 tau), and it is no empty bound."""
    data, made = laws.of_line(APART, 0.0, points(APART)), law_after(APART, n, [80.0], prior(APART))
    w1, w2 = wasserstein(made, data, 1), wasserstein(made, data, 2)
    assert w1 <= w2
    for tau in (0.1, 0.3, 1.0, 3.0, 10.0):
        x = torch.linspace(-4 - 6 * tau, 4 + 6 * tau, 1500, dtype=DOUBLE)
        seen = total_variation(made, data, tau, x)
        assert seen <= w1 / (tau * (2 * torch.pi) ** 0.5) <= w2 / (2 * tau)
        assert seen > 0.001 * w2 / tau


# ---- the theorems ----


@pytest.fixture(scope="module")
def made() -> gradients.Student:
    return gradients.student(0.8)


def test_the_losses_differ_by_less_than_the_gap_and_their_ratio_stays(made: gradients.Student) -> None:
    """Theorem 2: |L_CD - L_CT| = o(gap), here gap^2. With the student as target both losses are of that size, and
    training's stays larger.
    """
    counts, other = [40, 80, 160], gradients.student(0.3)
    apart, ratios = [], []
    for n in counts:
        sigmas = karras_sigmas(n, dtype=DOUBLE)
        cd, ct = (gradients.loss(APART, made, sigmas, step, other).item() for step in (euler_step, None))
        apart.append(ct - cd)
        own = [gradients.loss(APART, made, sigmas, step).item() for step in (euler_step, None)]
        ratios.append(own[1] / own[0])
    assert slopes(apart) == pytest.approx([2, 2], abs=0.2)
    assert ratios[-1] == pytest.approx(ratios[-2], rel=0.03)
    assert ratios[-1] > 1.5


@pytest.mark.parametrize("step", [euler_step, heun_step, None])
def test_the_gradients_have_one_limit(made: gradients.Student, step: Step | None) -> None:
    """Theorem 6, at order 1 in the gap or better."""
    limit = gradients.limit_gradient(APART, made, karras_level, points=1000)
    apart = [
        abs((n - 1) * gradients.gradient(APART, made, karras_sigmas(n, dtype=DOUBLE), step) - limit) for n in (40, 160)
    ]
    assert apart[1] < 0.015 * abs(limit)
    assert log2(apart[0] / apart[1]) > 2 * 0.95


def test_a_table_learns_the_fixed_point_and_more_levels_take_longer() -> None:
    """The expected updates end where the chain's mean is; and before, what is known has not got to the top yet."""
    z = APART.scores(SIGMA_MIN, 90, 60)

    def even(sigmas: Tensor) -> Tensor:
        return torch.full((len(sigmas) - 1,), 1 / (len(sigmas) - 1), dtype=DOUBLE)

    *_, (now, _, learnt) = learning.learn(APART, z, [(5, 100.0), (11, 900.0)], even)
    assert now == pytest.approx(1000)
    fixed = torch.stack(training(APART, grid(11), z))
    inside = z.abs() < 4  # tables of 150 entries, straight between them, with nothing outside
    torch.testing.assert_close(learnt[:, inside], fixed[:, inside], rtol=0, atol=5e-3)
    *_, (_, _, early) = learning.learn(APART, z, [(41, 300.0)], even)
    far = (early - torch.stack(training(APART, grid(41), z))).abs().mean(1)
    assert far[0] > 0.5
    assert far[-5:].max() < 0.01


def test_drawn_pairs_average_to_the_chain() -> None:
    """The pairs that the objective draws, sorted by x: their x_next has the mean that the chain has."""
    sigma, sigma_next = 1.0, 0.7
    which = torch.multinomial(SHARES, 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    image, noise = TWO[which] + 0.2 * randn(400_000, seed=1), randn(400_000, seed=2)
    x, x_next = image + sigma * noise, image + sigma_next * noise
    near = (x - 0.5).abs() < 0.02
    weights, means, _ = fixed_points.chain_moments(APART, torch.tensor([0.5], dtype=DOUBLE), sigma, sigma_next)
    assert x_next[near].mean().item() == pytest.approx(float((weights * means).sum()), abs=0.01)
