"""The Karras grid against golden values, draws of sigma and of pairs against their distributions, weightings."""

from math import erf, exp, log, sqrt

import pytest
import torch

from cmdist.core import noise
from cmdist.core.noise import karras_sigmas

DRAWS = [noise.uniform_index, noise.lognormal_index]

# (N, place): sigma, computed with 60 digits from EDM's eq. 5; 40, 151 and 201 are the grids of the paper's two-step
# samplers
GOLDEN = {
    (18, 1): 57.585984721248157,
    (18, 2): 40.785573796507958,
    (18, 8): 3.2568215197655383,
    (18, 16): 0.0075280199627840,
    (40, 1): 69.450946037196895,
    (40, 17): 4.3655616856823184,
    (40, 18): 3.5196988314663531,
    (40, 22): 1.3823679566485084,
    (40, 38): 0.0036765891681061,
    (151, 1): 77.133292518285411,
    (151, 62): 5.2485032274864868,
    (151, 67): 3.9912186130881495,
    (151, 149): 0.0023551625650554,
    (201, 106): 1.9128436206953610,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "place"), GOLDEN)
def test_the_grid_has_the_golden_values(n: int, place: int) -> None:
    assert karras_sigmas(n, dtype=torch.float64)[place].item() == pytest.approx(GOLDEN[n, place], rel=1e-13)
    assert karras_sigmas(n)[place].item() == pytest.approx(
        GOLDEN[n, place], rel=6e-8
    )  # computed in float64, rounded once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 18, 151, 1281])
@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.01, 3.0, 5.0), (0.02, 50.0, 1.0)])
def test_the_grid_falls_from_sigma_max_to_sigma_min_exactly(
    n: int, low: float, high: float, rho: float, dtype: torch.dtype
) -> None:
    sigmas = karras_sigmas(n, low, high, rho, dtype=dtype)
    assert sigmas.shape == (n,)
    assert sigmas.dtype == dtype
    assert sigmas[0] == torch.tensor(high, dtype=dtype)
    assert sigmas[-1] == torch.tensor(low, dtype=dtype)
    assert (sigmas[:-1] > sigmas[1:]).all()
    root = sigmas.double() ** (1 / rho)
    rounding = 4 * torch.finfo(dtype).eps * high ** (1 / rho)
    torch.testing.assert_close(
        root.diff(), root.diff().mean().expand(n - 1), rtol=0, atol=rounding
    )  # evenly spaced in sigma^(1/rho)


@pytest.mark.parametrize("n", [1, 0, -3])
def test_a_grid_of_fewer_than_two_levels_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 noise levels, not {n}$"):
        karras_sigmas(n)


def test_noise_is_added_image_by_image() -> None:
    x, z, sigma = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5), torch.tensor([0.0, 2.0, 80.0])
    noisy = noise.add_noise(x, sigma, z)
    for i in range(3):
        assert torch.equal(noisy[i], x[i] + sigma[i] * z[i])
    assert noise.expand(sigma, x).shape == (3, 1, 1, 1)


def test_lognormal_sigma_has_the_asked_quantiles() -> None:
    n = 200_000
    logs = noise.lognormal_sigma(n, -1.2, 1.3, generator()).double().log()
    for quantile, z in ((0.02, -2.053749), (0.25, -0.674490), (0.5, 0.0), (0.75, 0.674490), (0.98, 2.053749)):
        below = (logs < -1.2 + 1.3 * z).double().mean().item()
        assert abs(below - quantile) < 4 * sqrt(quantile * (1 - quantile) / n)


@pytest.mark.parametrize(("n", "mean", "std"), [(2, -1.1, 2.0), (11, -1.1, 2.0), (11, 0.4, 1.0), (1281, -1.1, 2.0)])
def test_lognormal_probabilities_are_the_erf_formula(n: int, mean: float, std: float) -> None:
    upward = karras_sigmas(n, dtype=torch.float64).flip(0).tolist()  # the paper counts upward
    mass = [
        erf((log(b) - mean) / (sqrt(2) * std)) - erf((log(a) - mean) / (sqrt(2) * std))
        for a, b in zip(upward, upward[1:], strict=False)
    ]
    wanted = torch.tensor(mass[::-1], dtype=torch.float64) / sum(mass)
    found = noise.lognormal_probabilities(karras_sigmas(n, dtype=torch.float64), mean, std)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-15)
    assert found.sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", [2, 3, 11, 40])
def test_drawn_pairs_have_their_frequencies(draw: noise.IndexDraw, n: int) -> None:
    sigmas, count = karras_sigmas(n), 100_000
    i = draw(count, sigmas, generator())
    assert i.shape == (count,)
    assert i.dtype == torch.int64
    assert i.min() >= 0 and i.max() <= n - 2  # i + 1 is a place of the grid too
    wanted = torch.full((n - 1,), 1 / (n - 1), dtype=torch.float64)
    if draw is noise.lognormal_index:
        wanted = noise.lognormal_probabilities(sigmas, -1.1, 2.0)  # the defaults are those of improved CT
    found = torch.bincount(i, minlength=n - 1) / count
    assert ((found - wanted).abs() <= 4.5 * (wanted * (1 - wanted) / count).sqrt()).all()


@pytest.mark.parametrize(
    "draw",
    [*(lambda g, d=d: d(64, karras_sigmas(40), g) for d in DRAWS), lambda g: noise.lognormal_sigma(64, -1.2, 1.2, g)],
)
def test_a_draw_depends_on_its_generator_alone(draw) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, other = draw(generator(5)), draw(generator(6))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(generator(5)), first)
    assert not torch.equal(first, other)


def test_weightings() -> None:
    sigma, sigma_next = (
        torch.tensor([80.0, 2.0, 0.5], dtype=torch.float64),
        torch.tensor([60.0, 1.5, 0.25], dtype=torch.float64),
    )
    assert noise.uniform(sigma, sigma_next).tolist() == [1.0, 1.0, 1.0]
    assert noise.inverse_gap(sigma, sigma_next).tolist() == [1 / 20, 2.0, 4.0]
    # EDM's table 1 writes it as (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    wanted = [(s**2 + 0.3**2) / (s * 0.3) ** 2 for s in sigma.tolist()]
    assert noise.edm_weight(sigma, 0.3).tolist() == pytest.approx(wanted, rel=1e-14)


def test_lognormal_sigma_is_exp_of_a_normal_draw() -> None:
    z = torch.randn(8, generator=generator(3))
    found = noise.lognormal_sigma(8, -1.2, 1.2, generator(3))
    assert found.tolist() == pytest.approx([exp(-1.2 + 1.2 * v) for v in z.tolist()], rel=1e-6)
