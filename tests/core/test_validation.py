from functools import partial

import pytest
import torch
from closed_forms import CASES, DOUBLE, flow, randn, slopes

from cmdist.core.exact import Gaussian
from cmdist.core.exact import consistency as exact_consistency
from cmdist.core.noise import karras_sigmas
from cmdist.core.solvers import euler_step, heun_step
from cmdist.core.validation import grid_errors, rms

MIN, MAX = 0.02, 5.0
IMAGES, NOISE = 0.6 * randn(5, 1, 2, 2, seed=1), randn(5, 1, 2, 2, seed=2)


def grid(n: int) -> torch.Tensor:
    return karras_sigmas(n, MIN, MAX, dtype=DOUBLE)


def test_rms_is_of_a_pixel():
    assert rms(torch.tensor([[3.0, -4.0], [0.0, 0.0]])).item() == 2.5


def test_pairs_of_the_same_noise_in_closed_form():
    """For Gaussian data f(x, t) = m + (x - m) a(t), so the pair differs by (image - m)(a(t) - a(s)) + noise (t a(t) - s
    a(s)).
    """
    data = Gaussian(0.3, 0.5)
    sigmas = grid(7)
    found = grid_errors(lambda x, sigma, labels: data.consistency(x, sigma, MIN), IMAGES, NOISE, sigmas)
    a = ((0.5**2 + MIN**2) / (0.5**2 + sigmas**2)).sqrt()
    change = [(a[i] - a[i + 1], sigmas[i] * a[i] - sigmas[i + 1] * a[i + 1]) for i in range(6)]
    expected = [((IMAGES - 0.3) * p + NOISE * q).square().mean().sqrt() for p, q in change]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_perfect_student_has_no_error_along_the_exact_trajectories(case):
    denoise = CASES[case].denoise
    exact = lambda x, sigma, labels: exact_consistency(denoise, x, sigma, MIN, steps=250)  # noqa: E731
    exact_step = lambda teacher, x, sigma, labels, sigma_next: flow(teacher, x, sigma, sigma_next, 100)  # noqa: E731
    assert grid_errors(exact, IMAGES, NOISE, grid(5), None, denoise, exact_step).max() < 1e-3
    assert grid_errors(exact, IMAGES, NOISE, grid(5)).max() > 0.02  # the other pair is not on a trajectory


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_along_the_teachers_steps_the_sum_of_errors_falls_with_the_order_of_the_solver(step, order):
    data = Gaussian(0.3, 0.5)
    exact = lambda x, sigma, labels: data.consistency(x, sigma, MIN)  # noqa: E731
    sums = [grid_errors(exact, IMAGES, NOISE, grid(n + 1), None, data, step).sum().item() for n in (32, 64, 128)]
    assert slopes(sums) == pytest.approx([order] * 2, abs=0.12)


def test_pairs_of_the_same_noise_shrink_with_the_gap():
    data = Gaussian(0.3, 0.5)
    means = [
        grid_errors(lambda x, s, y: data.consistency(x, s, MIN), IMAGES, NOISE, grid(n + 1)).mean().item()
        for n in (32, 64, 128)
    ]
    assert slopes(means) == pytest.approx([1, 1], abs=0.02)


def test_labels_reach_both_networks():
    seen = []

    def network(name, x, sigma, labels):
        seen.append((name, labels.tolist()))
        return x

    labels = torch.arange(5)
    grid_errors(partial(network, "student"), IMAGES, NOISE, grid(2), labels, partial(network, "teacher"), euler_step)
    assert {name for name, _ in seen} == {"student", "teacher"} and all(given == labels.tolist() for _, given in seen)
