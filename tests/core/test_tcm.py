"""TCM's second stage: its draws, who is compared with whom, and its gradient against one written by hand."""

import pytest
import torch
from closed_forms import DOUBLE, STD, nodes, objective, pairs, power, randn
from torch import Tensor

from cmdist.core.distances import l2
from cmdist.core.noise import add_noise
from cmdist.core.objectives.base import Networks

KIND = "truncated_consistency_training"
L2 = {"kind": "l2"}
# of four samples the first is at the boundary; the second looks below it, the others do not
SIGMA = torch.tensor([1.0, 1.0005, 4.0, 60.0], dtype=DOUBLE)


def offset(by: float) -> object:
    return lambda x, sigma, labels: power(0.5)(x, sigma) + by


def draw(made: object, sigma: Tensor = SIGMA) -> object:
    there = made.stages.nearer(sigma, made.at(0)["gap"])  # type: ignore[attr-defined]
    return pairs(sigma, there, randn(len(sigma), 1, 2, 2, seed=2))


def test_draws_are_the_published_law_and_an_exact_part_is_at_the_boundary() -> None:
    """Quantiles of exp(0.2 T), T of Student's law with 0.01 degrees of freedom between ln 1 and ln 80."""
    made = objective(KIND)
    drawn = made.draw((40_002, 1, 1, 1), made.at(0), torch.Generator().manual_seed(1))
    assert (drawn.sigma[:10_000] == 1).all() and (drawn.sigma[10_000:] > 1).float().mean() > 0.999
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    quantiles = drawn.sigma[10_000:].quantile(shares).tolist()
    assert quantiles == pytest.approx([1.01, 1.04, 1.22, 2.5, 10.2], rel=0.05)
    assert drawn.sigma.max() <= 80 and drawn.sigma.dtype == torch.float32
    below = drawn.sigma_next < 1
    assert below[:10_000].all() and 0 < below[10_000:].float().mean() < 0.3
    assert (drawn.sigma_next < drawn.sigma).all()


def test_another_law_has_its_own_quantiles() -> None:
    """With many degrees of freedom Student's law is normal: half of what lies above 0 is below 0.6745."""
    drawn = objective(KIND, df=1e4, sigma_std=0.5).draw((40_000, 1, 1, 1), {"gap": 0.1}, torch.Generator())
    logs = drawn.sigma[10_000:].log() / 0.5
    assert logs.median().item() == pytest.approx(0.6745, abs=0.02)


def test_below_the_boundary_the_first_stage_is_the_goal_and_above_it_the_student() -> None:
    made = objective(KIND, distance=L2, weighting="uniform")
    images, each = 0.5 * randn(4, 1, 2, 2), draw(made)
    student, own, first = power(0.6), power(0.4), power(0.3)
    losses = made.loss(Networks(student, own, frozen=first), images, None, each).minimised
    x, x_next = (add_noise(images, s, each.noise) for s in (each.sigma, each.sigma_next))  # type: ignore[attr-defined]
    goals = [(first if t < 1 else own)(x_next, each.sigma_next)[i] for i, t in enumerate(each.sigma_next)]  # type: ignore[attr-defined]
    assert [bool(t < 1) for t in each.sigma_next] == [True, True, False, False]  # type: ignore[attr-defined]
    plain = l2(student(x, each.sigma), torch.stack(goals))  # type: ignore[attr-defined]
    # the mean of four is the mean of three plus a tenth of the first
    torch.testing.assert_close(
        losses, plain * torch.tensor([0.4, 4 / 3, 4 / 3, 4 / 3], dtype=DOUBLE), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(losses.mean(), plain[1:].mean() + 0.1 * plain[0], rtol=1e-9, atol=0)


def test_only_what_looks_below_the_boundary_sees_a_constant_offset() -> None:
    """Above it both sides move; the boundary pins the student to the first stage."""
    made = objective(KIND, distance=L2)
    images, each = 0.5 * randn(4, 1, 2, 2), draw(made)
    true, moved = (
        made.loss(Networks(f, f, frozen=offset(0.0)), images, None, each).minimised for f in (offset(0.0), offset(0.5))
    )
    torch.testing.assert_close(moved[2:], true[2:], rtol=1e-9, atol=1e-12)
    assert (moved[:2] > 100 * true[:2]).all()


@pytest.mark.parametrize(("p", "first"), [(0.5, 0.5), (0.6, 0.5), (0.6, 0.45)])
def test_its_gradient_is_the_one_written_by_hand(p: float, first: float) -> None:
    """As of ECT, with the first stage's exponent below the boundary."""
    made = objective(KIND, distance=L2, boundary_share=0.25)
    exponent = torch.tensor(p, dtype=DOUBLE, requires_grad=True)
    images, noises, weights = nodes(SIGMA)
    there = made.stages.nearer(SIGMA, made.at(0)["gap"])
    sigma, sigma_next = (v.repeat_interleave(9) for v in (SIGMA, there))
    f = power(exponent)
    networks = Networks(f, f, frozen=power(first))
    losses = made.loss(networks, images, None, pairs(sigma, sigma_next, noises)).minimised
    (gradient,) = torch.autograd.grad((weights * losses).sum(), exponent)
    share = lambda s: (STD**2 + 0.002**2) / (STD**2 + s**2)  # noqa: E731
    here, goal = share(SIGMA) ** p, share(there) ** torch.where(there < 1, torch.tensor(first, dtype=DOUBLE), p)
    each = 2 * here * share(SIGMA).log() * ((STD**2 + SIGMA**2) * here - (STD**2 + SIGMA * there) * goal)
    parts = torch.tensor([0.4, 4 / 3, 4 / 3, 4 / 3], dtype=DOUBLE)  # 9 of 36 are at the boundary
    torch.testing.assert_close(gradient, (parts * each / (SIGMA - there)).sum(), rtol=1e-9, atol=1e-12)


def test_a_micro_batch_of_few_has_whole_samples_at_the_boundary() -> None:
    for n, some in ((4, 1), (7, 1), (8, 2), (3, 0)):
        drawn = objective(KIND).draw((n, 1, 1, 1), {"gap": 0.1}, torch.Generator().manual_seed(3))
        assert (drawn.sigma == 1).sum() == some
