"""Order of the solvers in the ODE's global error, on every closed form, against a Runge-Kutta oracle of order 4."""

import pytest
import torch
from closed_forms import CASES, DOUBLE, SHAPE, flow, randn, slopes

from cmdist.core.noise import karras_sigmas
from cmdist.core.solvers import Step, derivative, euler_step, heun_step, integrate

ORDERS = [(euler_step, 1), (heun_step, 2)]

# The whole range of the paper for the smooth densities. A finite data set's paths part near sigma = 0.2 (its images lie
# 1 to 2 apart) where the higher derivatives of the ODE are huge, so the order shows at reasonable N only above that;
# below, the paths are straight lines again.
RANGES = {"gaussian": (0.002, 80.0), "mixture": (0.002, 80.0), "finite": (0.3, 5.0)}


@pytest.mark.parametrize(("step", "order"), ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_global_error_falls_with_the_solvers_order(name: str, step: Step, order: int) -> None:
    case, (low, high), n = CASES[name], RANGES[name], 16
    x = (
        case.means[torch.arange(n) % len(case.means)]
        + case.std * randn(n, *SHAPE, seed=1)
        + high * randn(n, *SHAPE, seed=2)
    )
    truth = flow(case.denoise, x, torch.full((n,), high, dtype=DOUBLE), low, steps=200)
    errors = []
    for steps in (64, 128, 256):
        found = integrate(step, case.denoise, x, karras_sigmas(steps + 1, low, high, dtype=DOUBLE))
        errors.append((found - truth).square().mean().sqrt().item())
    assert slopes(errors) == pytest.approx([order, order], abs=0.1)
    assert errors[-1] < {1: 0.01, 2: 2e-4}[order]


@pytest.mark.parametrize("name", CASES)
def test_derivative_is_minus_sigma_times_the_score(name: str) -> None:
    """The paper's ODE is dx/dt = -t grad log p(x; t)."""
    case, x = CASES[name], randn(5, *SHAPE, seed=3)
    for sigma in (0.2, 1.0, 30.0):
        y = x.clone().requires_grad_()
        score = torch.autograd.grad(case.log_density(y, sigma).sum(), y)[0]
        s = torch.full((5,), sigma, dtype=DOUBLE)
        torch.testing.assert_close(derivative(x, s, case.denoise(x, s, None)), -sigma * score, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("step", "order"), ORDERS)
def test_steps_are_exact_for_straight_paths(step: Step, order: int) -> None:
    """With one image the paths are straight: any step is exact, each image with its own noise levels, down to
    sigma_next = 0.
    """
    image, x = randn(1, *SHAPE, seed=4), randn(4, *SHAPE, seed=5)
    sigma, sigma_next = (
        torch.tensor([80.0, 3.0, 0.5, 0.002], dtype=DOUBLE),
        torch.tensor([2.0, 0.0, 0.4, 0.0], dtype=DOUBLE),
    )
    found = step(lambda x, sigma, labels: image.expand_as(x), x, sigma, None, sigma_next)
    torch.testing.assert_close(
        found, image + (x - image) * (sigma_next / sigma).view(-1, 1, 1, 1), rtol=1e-12, atol=1e-12
    )


def test_heun_is_the_mean_of_the_two_slopes_and_euler_at_zero() -> None:
    case, x = CASES["mixture"], randn(3, *SHAPE, seed=6)
    sigma, sigma_next = torch.tensor([2.0, 2.0, 0.5], dtype=DOUBLE), torch.tensor([1.0, 0.0, 0.3], dtype=DOUBLE)
    found = heun_step(case.denoise, x, sigma, None, sigma_next)
    ahead = euler_step(case.denoise, x, sigma, None, sigma_next)
    assert torch.equal(found[1], ahead[1])
    for i in (0, 2):
        s, t = sigma[i].item(), sigma_next[i].item()
        first = (x[i : i + 1] - case.oracle(x[i : i + 1], s)) / s
        y = x[i : i + 1] + (t - s) * first
        second = (y - case.oracle(y, t)) / t
        torch.testing.assert_close(
            found[i : i + 1], x[i : i + 1] + (t - s) * (first + second) / 2, rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize(("step", "evaluations"), [(euler_step, 17), (heun_step, 33)])
def test_a_grid_that_ends_at_zero_costs_the_papers_evaluations(step: Step, evaluations: int) -> None:
    """18 noise levels and a final 0 would be 18 and 35 evaluations; here 17 levels and a 0."""
    seen: list[float] = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        seen.append(sigma.min().item())
        assert labels is given
        return 0.5 * x

    given = torch.tensor([1, 2])
    sigmas = torch.cat([karras_sigmas(17), torch.zeros(1)])
    found = integrate(step, denoise, torch.randn(2, *SHAPE), sigmas, given)
    assert len(seen) == evaluations
    assert min(seen) > 0
    assert found.isfinite().all()


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_a_step_never_waits_for_the_device(step: Step) -> None:
    """Tensors of the meta device have no values: whatever looks at one on the host, as `bool(...)` does, fails."""
    x, sigma = torch.empty(2, *SHAPE, device="meta"), torch.empty(2, device="meta")
    assert step(lambda x, sigma, labels: 0.5 * x, x, sigma, None, sigma).shape == x.shape


@pytest.mark.parametrize("step", [euler_step, heun_step])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integrate_works_in_the_images_precision(step: Step, dtype: torch.dtype) -> None:
    case, x = CASES["gaussian"], 80 * randn(4, *SHAPE, seed=7)
    seen: set[torch.dtype] = set()

    def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        seen.update((x.dtype, sigma.dtype))
        return case.denoise(x.double(), sigma.double(), None).to(x.dtype)

    found = integrate(step, denoise, x.to(dtype), karras_sigmas(40, dtype=DOUBLE))
    assert seen == {dtype}
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), integrate(step, case.denoise, x, karras_sigmas(40, dtype=DOUBLE)), rtol=0, atol=2e-5
    )
