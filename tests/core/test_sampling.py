"""Samplers on the Gaussian, where their result is affine in the noise, so that mean and variance are known without a
single random draw.
"""

from math import sqrt

import pytest
import torch
from closed_forms import CASES, DOUBLE, SHAPE, randn, slopes
from torch import Tensor

from cmdist.core.exact import Gaussian
from cmdist.core.noise import karras_sigmas
from cmdist.core.sampling import multistep, ode, one_step
from cmdist.core.solvers import euler_step, heun_step

# sigma_max so high that sigma_max noise is the noised data to 12 digits; sigma_min so high that to forget it is seen
STD, MEAN, SIGMA_MAX, SIGMA_MIN = 0.5, 0.3, 1e6, 0.1
DATA = Gaussian(MEAN, STD)


def exact(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    return DATA.consistency(x, sigma, SIGMA_MIN)


def moments(sampler, steps: int) -> tuple[float, float]:
    """Mean and variance of a sampler's pixels: x = a + sum_i b_i noise_i, read off by giving it no noise, then one
    step's only.
    """
    a = sampler(torch.zeros(steps, 1, 1, 1, 1, dtype=DOUBLE)).item()
    units = torch.eye(steps, dtype=DOUBLE).view(steps, steps, 1, 1, 1)
    return a, (sampler(units) - a).square().sum().item()


@pytest.mark.parametrize("middle", [[], [1.5], [20.0, 0.8], [5.0, 1.0, 0.3, 0.12], [SIGMA_MIN]])
def test_multistep_keeps_mean_and_variance(middle: list[float]) -> None:
    times = torch.tensor([SIGMA_MAX, *middle], dtype=DOUBLE)
    mean, variance = moments(lambda noises: multistep(exact, noises, times, SIGMA_MIN, clip=False), len(times))
    assert mean == pytest.approx(MEAN, abs=1e-6)
    assert variance == pytest.approx(STD**2 + SIGMA_MIN**2, rel=1e-10)  # the data at sigma_min, where f ends


@pytest.mark.parametrize("time", [1.5, 0.3])
def test_forgetting_sigma_min_would_be_seen(time: float) -> None:
    times = torch.tensor([SIGMA_MAX, time], dtype=DOUBLE)
    _, variance = moments(lambda noises: multistep(exact, noises, times, 0.0, clip=False), 2)
    before = STD**2 + SIGMA_MIN**2
    assert variance == pytest.approx(before * (before + time**2) / (STD**2 + time**2), rel=1e-10)
    assert variance > before * 1.003


def test_each_step_sees_its_own_level_noise_and_labels() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is given
        seen.append((x, sigma))
        return torch.full_like(x, 0.5 * len(seen))

    given, noises = torch.tensor([3, 4]), torch.randn(3, 2, *SHAPE)
    found = multistep(denoise, noises, torch.tensor([80.0, 2.0, 0.5]), 0.4, given, clip=False)
    assert torch.equal(found, torch.full_like(found, 1.5))
    levels = [80.0, sqrt(4 - 0.16), sqrt(0.25 - 0.16)]  # the first has no image below it
    for i, ((x, sigma), level) in enumerate(zip(seen, levels, strict=True)):
        assert sigma.tolist() == [[80.0] * 2, [2.0] * 2, [0.5] * 2][i]
        torch.testing.assert_close(x, 0.5 * i + level * noises[i], rtol=1e-6, atol=1e-6)


def test_a_last_time_of_sigma_min_adds_no_noise() -> None:
    noises = randn(2, 3, *SHAPE)
    once = one_step(exact, noises[0], 80.0, clip=False)
    again = multistep(exact, noises, torch.tensor([80.0, SIGMA_MIN], dtype=DOUBLE), SIGMA_MIN, clip=False)
    torch.testing.assert_close(again, once, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_is_f_of_scaled_noise(dtype: torch.dtype) -> None:
    noise, labels = randn(4, *SHAPE).to(dtype), torch.arange(4)

    def denoise(x: Tensor, sigma: Tensor, given: Tensor | None) -> Tensor:
        assert given is labels
        assert sigma.dtype == x.dtype == dtype
        assert sigma.tolist() == [80.0] * 4
        return x / 40

    assert torch.equal(one_step(denoise, noise, 80.0, labels, clip=False), (80 * noise) / 40)


def test_clipping_keeps_pixels_in_range_after_every_step() -> None:
    inputs: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        inputs.append(x)
        return 5 * torch.ones_like(x)

    noises = torch.zeros(2, 1, *SHAPE)
    assert multistep(denoise, noises, torch.tensor([80.0, 1.0])).max() == 1
    assert inputs[1].max() == 1  # what the second step starts from was clipped too
    assert multistep(denoise, noises, torch.tensor([80.0, 1.0]), clip=False).max() == 5
    assert (
        ode(lambda x, sigma, labels: -5 * torch.ones_like(x), noises[0], torch.tensor([80.0, 0.0]), euler_step).min()
        == -1
    )


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_the_ode_gives_the_datas_mean_and_variance(step, order: int) -> None:
    errors = []
    for n in (100, 200, 400):
        sigmas = torch.cat([karras_sigmas(n + 1, 2e-4, 1e4, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)])
        mean, variance = moments(lambda noises, sigmas=sigmas: ode(DATA, noises[0], sigmas, step, clip=False), 1)
        assert mean == pytest.approx(MEAN, abs=1e-3)
        errors.append(abs(variance - STD**2))
    assert slopes(errors) == pytest.approx([order, order], abs=0.1)
    assert errors[-1] < {1: 0.02, 2: 5e-4}[order]


def test_the_ode_starts_from_its_first_noise_level_and_hands_labels_on() -> None:
    noise, given, seen = randn(2, *SHAPE), torch.tensor([1, 0]), []

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is given
        seen.append((x, sigma[0].item()))
        return CASES["mixture"].denoise(x, sigma, None)

    ode(denoise, noise, torch.tensor([3.0, 1.0, 0.0]), heun_step, given)
    torch.testing.assert_close(seen[0][0], 3 * noise, rtol=0, atol=0)
    assert [s for _, s in seen] == [3.0, 1.0, 1.0]


def test_sampling_keeps_no_graph() -> None:
    weight = torch.ones(1, requires_grad=True)
    for found in (
        multistep(lambda x, sigma, labels: weight * x, torch.randn(2, 1, *SHAPE), torch.tensor([80.0, 1.0])),
        ode(lambda x, sigma, labels: weight * x / 2, torch.randn(1, *SHAPE), torch.tensor([80.0, 1.0]), heun_step),
    ):
        assert not found.requires_grad


def test_noises_and_times_must_match() -> None:
    with pytest.raises(AssertionError):
        multistep(exact, torch.zeros(3, 1, *SHAPE), torch.tensor([80.0, 1.0]))


@pytest.mark.parametrize("sigma_min", [0.01, 0.7, 0.002])  # in fp32 the first two are a little below themselves
def test_a_grid_in_single_precision_may_end_at_sigma_min(sigma_min: float) -> None:
    inputs: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        inputs.append(x)
        return torch.zeros_like(x)

    multistep(denoise, torch.ones(3, 1, *SHAPE), karras_sigmas(40, sigma_min)[[0, 22, 39]], sigma_min)
    assert inputs[-1].abs().max() < 1e-3 * sigma_min


def test_times_below_sigma_min_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="below sigma_min"):
        multistep(exact, torch.zeros(2, 1, *SHAPE), torch.tensor([80.0, 0.05]), SIGMA_MIN)
