"""The paper's theorems on closed forms: the fixed point of distillation, and training that becomes distillation.

All pairs of the grid are taken, each with the same few images and noises, instead of drawn ones: nothing here is
random.
"""

import pytest
import torch
from closed_forms import CASES, DOUBLE, ENUMERABLE, Case, flow, pairs, posterior, randn, slopes
from torch import Tensor

from cmdist.core import distances, noise
from cmdist.core.curricula import Constant
from cmdist.core.distances import Distance
from cmdist.core.noise import Weighting, add_noise, karras_sigmas
from cmdist.core.objectives.base import Draw, Networks
from cmdist.core.objectives.consistency import Consistency
from cmdist.core.preconditioning import Model, consistency_scalings
from cmdist.core.solvers import Step, euler_step, heun_step

# Above about half the distance of two images of the finite data set, where its paths part and only huge N would show
# the order.
SIGMA_MIN, SIGMA_MAX = 0.3, 5.0
ORDERS = [(euler_step, 1), (heun_step, 2)]
WEIGHTINGS = [(noise.uniform, 0), (noise.inverse_gap, 1)]  # with 1/gap ~ N the loss falls by one order less


def all_pairs(case: Case, steps: int, samples: int) -> tuple[Tensor, Draw]:
    """Images and draws: `samples` of each for every pair of a grid of `steps` steps."""
    sigmas, shape = karras_sigmas(steps + 1, SIGMA_MIN, SIGMA_MAX, dtype=DOUBLE), case.means.shape[1:]
    images = case.means[torch.arange(samples) % len(case.means)] + case.std * randn(samples, *shape, seed=1)
    sigma, sigma_next = (s.repeat_interleave(samples) for s in (sigmas[:-1], sigmas[1:]))
    return images.repeat(steps, 1, 1, 1), pairs(
        sigma, sigma_next, randn(samples, *shape, seed=2).repeat(steps, 1, 1, 1), 0
    )


def objective(distance: Distance, weighting: Weighting, step: Step | None) -> Consistency:
    return Consistency(Constant(2), karras_sigmas, noise.uniform_index, distance, weighting, step)


@pytest.mark.parametrize(("weighting", "lost"), WEIGHTINGS)
@pytest.mark.parametrize(
    ("distance", "power"), [(distances.l1, 1), (distances.l2, 2), (distances.pseudo_huber(1.0), 2)]
)
@pytest.mark.parametrize(("step", "order"), ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_the_exact_consistency_function_is_the_fixed_point_of_distillation(
    name: str, step: Step, order: int, distance: Distance, power: int, weighting: Weighting, lost: int
) -> None:
    """Its loss is only the solver's error in one step, O(1/N^(order + 1)), to the distance's power (Theorem 1's proof).

    The pseudo-Huber distance is quadratic well below c = 1.
    """
    case, losses = CASES[name], []

    def exact(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return flow(case.denoise, x, sigma, SIGMA_MIN, steps=40)

    for steps in (64, 128):
        images, draw = all_pairs(case, steps, samples=6)
        nets = Networks(exact, exact, None, case.denoise)
        losses.append(objective(distance, weighting, step).loss(nets, images, None, draw).minimised.mean().item())
    assert slopes(losses) == pytest.approx([power * (order + 1) - lost], abs=0.1 * power)


@pytest.mark.parametrize("name", CASES)
def test_another_function_is_no_fixed_point(name: str) -> None:
    """The denoiser itself as student: its loss per step falls like the gap to the square and no faster, so 1/gap^2 of
    it stays.
    """
    case, scaled = CASES[name], []
    for steps in (32, 64):
        images, draw = all_pairs(case, steps, samples=6)
        loss = objective(distances.l2, noise.uniform, heun_step).loss(
            Networks(case.denoise, case.denoise, None, case.denoise), images, None, draw
        )
        scaled.append((loss.minimised / (draw.sigma - draw.sigma_next) ** 2).mean().item())
    assert scaled[1] == pytest.approx(scaled[0], rel=0.1)
    assert scaled[1] > 1e-3


def small_student(pixels: int, seed: int) -> tuple[Model, list[Tensor]]:
    """A smooth network with the boundary condition, and its parameters."""
    shapes = ((pixels + 1, 16), (16,), (16, pixels))
    weights = [(0.5 * randn(*shape, seed=10 * seed + i)).requires_grad_() for i, shape in enumerate(shapes)]

    def net(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        hidden = torch.cat([x.flatten(1), c_noise[:, None]], 1) @ weights[0] + weights[1]
        return (hidden.tanh() @ weights[2]).view_as(x)

    return Model(net, consistency_scalings(0.5, SIGMA_MIN)), weights


def relative_differences(
    case: Case, step: Step, distance: Distance, weighting: Weighting, own_target: bool, all_steps: list[int]
) -> list[float]:
    """|gradient of CT - gradient of CD| / |gradient of CD| at the same x and pairs, for each number of steps.

    For one image and noise the two differ by O(1), as x_next does; Theorem 2 is about their expectation. It is taken
    exactly: x keeps its value, while image and noise run through all that may have made it, each with its probability.
    """
    student, weights = small_student(case.means[0].numel(), seed=1)
    target = None if own_target else small_student(case.means[0].numel(), seed=2)[0]
    nets, found = Networks(student, student, target, case.denoise), []
    for steps in all_steps:
        images, draw = all_pairs(case, steps, samples=4)
        loss = objective(distance, weighting, step).loss(nets, images, None, draw).minimised.mean()
        distillation = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

        x = add_noise(images, draw.sigma, draw.noise)
        sources, probabilities = posterior(case, x, draw.sigma)
        q, z = len(sources), (x - sources) / draw.sigma.view(-1, 1, 1, 1)
        draws = pairs(draw.sigma.repeat(q), draw.sigma_next.repeat(q), z.flatten(0, 1), 0)
        losses = objective(distance, weighting, None).loss(nets, sources.flatten(0, 1), None, draws).minimised
        expected = (probabilities.flatten() * losses).sum() / len(images)
        training = torch.cat([g.flatten() for g in torch.autograd.grad(expected, weights)])
        found.append(((training - distillation).norm() / distillation.norm()).item())
    return found


@pytest.mark.parametrize("own_target", [True, False])
@pytest.mark.parametrize("weighting", [weighting for weighting, _ in WEIGHTINGS])
@pytest.mark.parametrize("distance", [distances.l2, distances.pseudo_huber(3.0)])
@pytest.mark.parametrize("step", [step for step, _ in ORDERS])
@pytest.mark.parametrize("name", ENUMERABLE)
def test_the_gradient_of_training_becomes_that_of_distillation(
    name: str, step: Step, distance: Distance, weighting: Weighting, own_target: bool
) -> None:
    """Theorem 2: they differ by O(1/N^2), while distillation's is O(1/N) with the student as target and O(1) with
    another one.
    """
    found = relative_differences(ENUMERABLE[name], step, distance, weighting, own_target, [64, 128, 256])
    assert slopes(found) == pytest.approx([1, 1] if own_target else [2, 2], abs=0.15)
    assert found[-1] < (0.015 if own_target else 1e-4)


@pytest.mark.parametrize("name", ENUMERABLE)
def test_with_l1_the_gradients_stay_apart(name: str) -> None:
    """Theorem 2 asks for a smooth distance, and the comparison above is sharp enough to see one that is not."""
    found = relative_differences(ENUMERABLE[name], euler_step, distances.l1, noise.uniform, True, [32, 128])
    assert min(found) > 0.1
