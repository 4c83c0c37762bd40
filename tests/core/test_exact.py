"""The closed forms against Tweedie's formula on independently written densities; the consistency function against
another solver.
"""

import pytest
import torch
from closed_forms import CASES, DOUBLE, ENUMERABLE, SHAPE, flow, posterior, randn
from torch import Tensor

from cmdist.core.exact import FiniteDataSet, Gaussian, GaussianMixture, consistency, mean_denoiser
from cmdist.core.flow import denoised_by, flow_time, sigma_of, velocity
from cmdist.core.solvers import mean_jump

SIGMAS = [0.002, 0.1, 0.5, 2.0, 80.0]


def full(n: int, sigma: float) -> Tensor:
    return torch.full((n,), sigma, dtype=DOUBLE)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", CASES)
def test_denoisers_are_tweedies_formula(name: str, sigma: float) -> None:
    case = CASES[name]
    x = case.means[torch.arange(8) % len(case.means)] + (case.std**2 + sigma**2) ** 0.5 * randn(8, *SHAPE, seed=1)
    torch.testing.assert_close(case.denoise(x, full(8, sigma), None), case.oracle(x, sigma), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ENUMERABLE)
def test_denoisers_are_the_posterior_mean(name: str) -> None:
    case = ENUMERABLE[name]
    x, sigma = randn(5, *case.means.shape[1:], seed=2), torch.tensor([0.1, 0.3, 0.7, 5.0, 80.0], dtype=DOUBLE)
    images, weights = posterior(case, x, sigma)
    torch.testing.assert_close(
        case.denoise(x, sigma, None), (weights[..., None, None, None] * images).sum(0), rtol=1e-11, atol=1e-12
    )


def test_a_batch_may_mix_noise_levels() -> None:
    for case in CASES.values():
        x, sigma = randn(5, *SHAPE, seed=3), torch.tensor(SIGMAS, dtype=DOUBLE)
        together = case.denoise(x, sigma, None)
        for i in range(5):
            torch.testing.assert_close(
                together[i : i + 1], case.denoise(x[i : i + 1], sigma[i : i + 1], None), rtol=1e-12, atol=1e-13
            )


@pytest.mark.parametrize("mean", [0.3, randn(*SHAPE, seed=4)])
def test_numeric_consistency_is_the_gaussians_closed_form(mean: Tensor | float) -> None:
    gaussian = Gaussian(mean, 0.5)
    sigma = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=DOUBLE)
    x = mean + (0.25 + sigma**2).sqrt().view(-1, 1, 1, 1) * randn(4, *SHAPE, seed=5)
    closed = gaussian.consistency(x, sigma, 0.002)
    torch.testing.assert_close(consistency(gaussian, x, sigma, 0.002), closed, rtol=0, atol=1e-5)
    torch.testing.assert_close(flow(gaussian, x, sigma, 0.002, steps=400), closed, rtol=0, atol=1e-6)
    # an ODE path keeps (x - mean) / its standard deviation
    before = (x - mean) / (0.25 + sigma**2).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close((closed - mean) / (0.25 + 0.002**2) ** 0.5, before, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gaussian.consistency(x, full(4, 0.002), 0.002), x, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", ["mixture", "finite"])
def test_numeric_consistency_is_the_end_of_the_path(name: str) -> None:
    case = CASES[name]
    sigma = torch.tensor([0.31, 1.0, 2.0, 5.0], dtype=DOUBLE)
    x = case.means[:4] + sigma.view(-1, 1, 1, 1) * randn(4, *SHAPE, seed=6)
    end = consistency(case.denoise, x, sigma, 0.3, steps=500)
    torch.testing.assert_close(end, flow(case.denoise, x, sigma, 0.3), rtol=0, atol=1e-5)
    half_way = flow(case.denoise, x, sigma, (0.3 * sigma).sqrt())  # a point of the same path has the same end
    torch.testing.assert_close(
        consistency(case.denoise, half_way, (0.3 * sigma).sqrt(), 0.3, steps=500), end, rtol=0, atol=1e-5
    )
    assert torch.equal(consistency(case.denoise, x, full(4, 0.3), 0.3, steps=10), x)  # no way to go
    narrow = consistency(case.denoise, x.float(), sigma.float(), 0.3, steps=500)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), end, rtol=0, atol=1e-5)


def test_a_finite_data_set_ends_on_its_images() -> None:
    case = CASES["finite"]
    end = consistency(case.denoise, 80 * randn(16, *SHAPE, seed=7), full(16, 80.0), 0.002)
    nearest = torch.cdist(end.flatten(1), case.means.flatten(1)).min(1)
    assert nearest.values.max() < 4 * 0.002
    assert len(nearest.indices.unique()) > 2


def test_a_labelled_data_set_averages_over_the_asked_class_only() -> None:
    images, labels = randn(9, *SHAPE, seed=8), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0])
    data = FiniteDataSet(images, labels)
    x, sigma, asked = (
        randn(6, *SHAPE, seed=9),
        torch.tensor([0.05, 0.5, 2.0, 80.0, 1.0, 0.3], dtype=DOUBLE),
        torch.tensor([0, 1, 2, 0, 1, 2]),
    )
    found = data(x, sigma, asked)
    for i, label in enumerate(asked.tolist()):
        alone = FiniteDataSet(images[labels == label])
        torch.testing.assert_close(found[i : i + 1], alone(x[i : i + 1], sigma[i : i + 1]), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(data(x, sigma), FiniteDataSet(images)(x, sigma), rtol=0, atol=0)  # not asked: over all
    torch.testing.assert_close(FiniteDataSet(images)(x, sigma, asked), FiniteDataSet(images)(x, sigma), rtol=0, atol=0)
    # the consistency function hands the labels on
    end = consistency(data, x, sigma, 0.01, asked, steps=200)
    torch.testing.assert_close(
        end[1:2], consistency(FiniteDataSet(images[labels == 1]), x[1:2], sigma[1:2], 0.01, steps=200)
    )


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_large_data_set_in_fp32_is_as_in_fp64(sigma: float) -> None:
    """1,797 images of 8x8 as the exact teacher of the demo: nothing overflows, and no digit that matters is lost."""
    images = randn(1797, 1, 8, 8, seed=10).clamp(-1, 1)
    x = images[:64] + sigma * randn(64, 1, 8, 8, seed=11)
    found = FiniteDataSet(images.float())(x.float(), torch.full((64,), sigma))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), FiniteDataSet(images)(x, full(64, sigma)), rtol=0, atol=2e-5)


def test_a_mixture_of_one_is_a_gaussian_and_a_narrow_mixture_a_finite_data_set() -> None:
    x, sigma, one = randn(5, *SHAPE, seed=12), torch.tensor(SIGMAS, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    mean = randn(*SHAPE, seed=13)
    torch.testing.assert_close(
        GaussianMixture(mean[None], 0.4, one)(x, sigma), Gaussian(mean, 0.4)(x, sigma), rtol=1e-12, atol=1e-13
    )
    means, equal = randn(3, *SHAPE, seed=14), torch.ones(3, dtype=DOUBLE)
    torch.testing.assert_close(
        GaussianMixture(means, 0.0, equal)(x, sigma), FiniteDataSet(means)(x, sigma), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_forms_answer_in_the_inputs_precision(dtype: torch.dtype) -> None:
    """Their parameters are float64 here: a teacher must not turn an fp32 training into an fp64 one."""
    x, sigma = randn(3, *SHAPE, seed=10).to(dtype), torch.tensor([0.1, 1.0, 80.0], dtype=dtype)
    for case in CASES.values():
        assert case.denoise(x, sigma, None).dtype == dtype
    assert Gaussian(randn(*SHAPE), 0.5).consistency(x, sigma, 0.002).dtype == dtype


def test_closed_forms_follow_the_inputs_device() -> None:
    x, sigma, labels = (
        torch.empty(2, *SHAPE, device="meta"),
        torch.empty(2, device="meta"),
        torch.empty(2, dtype=torch.int64, device="meta"),
    )
    data = FiniteDataSet(randn(4, *SHAPE), torch.tensor([0, 1, 0, 1]))
    for denoise in (Gaussian(randn(*SHAPE), 0.5), Gaussian(0.3, 0.5), CASES["mixture"].denoise, data):
        assert denoise(x, sigma, labels).device.type == "meta"


@pytest.mark.parametrize("sigma_next", [0.002, 0.3, 2.9])
def test_a_mean_denoiser_jumps_along_the_ode(sigma_next: float) -> None:
    """The Gaussian's closed form lands on its ODE's solution, a mixture's numerical one on that of another solver."""
    sigma, end = full(4, 3.0), full(4, sigma_next)
    for name in ("gaussian", "mixture"):
        case = CASES[name]
        x = case.means[torch.arange(4) % len(case.means)] + 3 * randn(4, *SHAPE, seed=6)
        numerical = mean_denoiser(case.denoise, x, sigma, end)
        landed = mean_jump(lambda *a, value=numerical: value, x, sigma, None, end)
        torch.testing.assert_close(landed, flow(case.denoise, x, sigma, end, steps=400), rtol=0, atol=1e-6)
    gaussian = Gaussian(0.3, 0.5)
    closed = mean_jump(gaussian, x, sigma, None, end)
    torch.testing.assert_close(closed, gaussian.consistency(x, sigma, sigma_next), rtol=1e-13, atol=1e-13)
    at_once = gaussian(x, sigma, None, sigma)
    torch.testing.assert_close(at_once, gaussian(x, sigma), rtol=1e-13, atol=1e-13)  # from sigma to sigma: D itself


def test_flow_time_is_the_same_curve() -> None:
    """A Gaussian's flow map, mean velocity and velocity as written in flow-matching time."""
    mean, std = 0.3, 0.7
    sigma, sigma_next = (
        torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=DOUBLE),
        torch.tensor([0.002, 0.1, 2.0, 1.0]).to(DOUBLE),
    )
    a, r = (flow_time(v).view(-1, 1, 1, 1) for v in (sigma, sigma_next))
    torch.testing.assert_close(sigma_of(flow_time(sigma)), sigma, rtol=1e-13, atol=0)
    y = randn(4, *SHAPE, seed=7)
    x = y * (1 + sigma.view(-1, 1, 1, 1))
    spread = lambda t: ((1 - t) ** 2 * std**2 + t**2).sqrt()  # noqa: E731
    end = (1 - r) * mean + (y - (1 - a) * mean) * spread(r) / spread(a)
    gaussian = Gaussian(mean, std)
    mean_denoised = gaussian(x, sigma, None, sigma_next)
    torch.testing.assert_close(velocity(x, sigma, mean_denoised), (y - end) / (a - r), rtol=1e-11, atol=1e-11)
    slope = -mean + (y - (1 - a) * mean) * (a - (1 - a) * std**2) / spread(a) ** 2
    torch.testing.assert_close(velocity(x, sigma, gaussian(x, sigma)), slope, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(denoised_by(x, sigma, slope), gaussian(x, sigma), rtol=1e-11, atol=1e-11)
