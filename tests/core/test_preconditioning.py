"""The scalings against their formulas, and the boundary condition f(x, sigma_min) = x bit for bit."""

from math import log, sqrt

import pytest
import torch
from torch import Tensor

from cmdist.core.noise import karras_sigmas
from cmdist.core.preconditioning import Model, angle, consistency_scalings, edm_scalings, log_level

SIGMAS = [0.002, 0.0021, 0.01, 0.3, 0.5, 1.0, 7.5, 80.0]
SIGMA_DATAS = [0.5, 0.3, 0.6, 0.1, 0.123, 0.7, 1.0, 2.0]


@pytest.mark.parametrize("sigma_data", SIGMA_DATAS)
def test_edm_scalings_follow_table_1(sigma_data: float) -> None:
    d = sigma_data
    for i, s in enumerate(SIGMAS):
        found = [v[i].item() for v in edm_scalings(d)(torch.tensor(SIGMAS, dtype=torch.float64))]
        wanted = [d**2 / (s**2 + d**2), s * d / sqrt(d**2 + s**2), 1 / sqrt(s**2 + d**2), log(s) / 4]
        assert found == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("sigma_min", [0.002, 0.001])
@pytest.mark.parametrize("sigma_data", SIGMA_DATAS)
def test_consistency_scalings_follow_appendix_c(sigma_data: float, sigma_min: float) -> None:
    d = sigma_data
    for i, s in enumerate(SIGMAS):
        found = [v[i].item() for v in consistency_scalings(d, sigma_min)(torch.tensor(SIGMAS, dtype=torch.float64))]
        wanted = [
            d**2 / ((s - sigma_min) ** 2 + d**2),
            d * (s - sigma_min) / sqrt(d**2 + s**2),
            1 / sqrt(s**2 + d**2),
            log(s) / 4,
        ]
        assert found == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("scalings", [edm_scalings(), consistency_scalings()])
def test_the_network_sees_unit_variance(scalings) -> None:
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    torch.testing.assert_close(
        scalings(sigma).c_in ** 2 * (0.5**2 + sigma**2), torch.ones_like(sigma), rtol=1e-13, atol=0
    )


def test_the_exact_network_of_a_denoiser_has_unit_variance() -> None:
    """EDM's reason for c_skip and c_out: Var[(x_0 - c_skip x) / c_out] = 1 for data of variance sigma_data^2."""
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    c_skip, c_out, _, _ = edm_scalings(0.3)(sigma)
    variance = ((1 - c_skip) ** 2 * 0.3**2 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(variance, torch.ones_like(sigma), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_min", [0.002, 0.01, 0.003, 1e-4])
@pytest.mark.parametrize("sigma_data", SIGMA_DATAS)
def test_boundary_condition_holds_bit_for_bit(sigma_data: float, sigma_min: float, dtype: torch.dtype) -> None:
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=dtype) * 3
    for out in (torch.randn_like(x), torch.full_like(x, 1e30), torch.full_like(x, -1e30)):
        f = Model(lambda x, c_noise, labels, out=out: out, consistency_scalings(sigma_data, sigma_min))
        for sigma in (
            torch.full((4,), sigma_min, dtype=dtype),
            karras_sigmas(18, sigma_min, dtype=dtype)[-1].expand(4),
        ):
            found = f(x, sigma, None)
            assert found.dtype == dtype
            assert torch.equal(found.view(torch.uint8), x.view(torch.uint8))


def test_a_denoiser_calls_its_network_once_with_scaled_input() -> None:
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def net(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        calls.append((x, c_noise, labels))
        return torch.full_like(x, 2.0)

    x, sigma, labels = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 1.0, 80.0]), torch.tensor([4, 5, 6])
    found = Model(net, edm_scalings())(x, sigma, labels)
    assert len(calls) == 1
    scaled, c_noise, given = calls[0]
    assert given is labels
    for i, s in enumerate(sigma.tolist()):
        torch.testing.assert_close(scaled[i], x[i] / sqrt(s**2 + 0.25), rtol=1e-6, atol=1e-7)
        assert c_noise[i].item() == pytest.approx(log(s) / 4, abs=1e-7)
        torch.testing.assert_close(
            found[i], 0.25 / (s**2 + 0.25) * x[i] + s * 0.5 / sqrt(s**2 + 0.25) * 2.0, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float16, torch.float64])
def test_the_sums_keep_the_images_precision_whatever_the_network_returns(theirs: torch.dtype) -> None:
    x = 80 * torch.randn(4, 1, 2, 2)
    found = Model(lambda x, c_noise, labels: torch.zeros_like(x, dtype=theirs), edm_scalings())(
        x, torch.full((4,), 80.0)
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x * (0.25 / (80.0**2 + 0.25)), rtol=1e-6, atol=0)


def test_edm_scalings_with_an_angle_are_trigflows() -> None:
    """y = cos x; D = cos y - sin sigma_data F with F's sign turned; the angle stays finite and exact at both ends."""
    sigma = torch.tensor([0.0, 0.002, 0.5, 80.0], dtype=torch.float64)
    theta = angle(0.5)(sigma)
    found = edm_scalings(0.5, angle(0.5))(sigma)
    torch.testing.assert_close(found.c_skip, theta.cos() ** 2)
    torch.testing.assert_close(found.c_out, 0.5 * theta.sin())
    torch.testing.assert_close(found.c_in, theta.cos() / 0.5)
    torch.testing.assert_close(0.5 * theta.tan(), sigma)
    assert found.c_noise[0] == 0 and torch.equal(found.c_noise, theta)
    assert torch.equal(edm_scalings()(sigma).c_noise, log_level(sigma))
    assert torch.equal(consistency_scalings(0.5, 0.002, angle(0.5))(sigma).c_noise, theta)
