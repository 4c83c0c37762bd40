"""What holds for every objective: pure draws, deterministic losses, gradient in the student only, shared dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from closed_forms import ENUMERABLE, objective, pairs, posterior, randn, section
from torch import Tensor, nn

from cmdist.core import distances, noise
from cmdist.core.curricula import Constant
from cmdist.core.exact import FiniteDataSet
from cmdist.core.noise import Denoise, karras_sigmas, onto
from cmdist.core.objectives.base import Networks, Objective, draw_noise, same_dropout
from cmdist.core.objectives.consistency import Consistency
from cmdist.core.objectives.denoising import Denoising
from cmdist.core.preconditioning import Model, consistency_scalings, edm_scalings
from cmdist.core.solvers import euler_step, heun_step
from cmdist.kinds.objectives import OBJECTIVES as TABLE

B, SHAPE = 6, (1, 3, 3)
DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
CURRICULUM = Constant(11, 0.9)
AT = {"n_timesteps": 11, "mu": 0.9}
CT = Consistency(CURRICULUM, karras_sigmas, noise.uniform_index, distances.l2, noise.uniform)
OBJECTIVES: dict[str, Objective] = {
    "denoising": Denoising(),
    "cd_euler": Consistency(CURRICULUM, karras_sigmas, noise.uniform_index, distances.l1, noise.uniform, euler_step),
    "cd_heun": Consistency(CURRICULUM, karras_sigmas, noise.uniform_index, distances.l2, noise.uniform, heun_step),
    "ct": CT,
    "ict": Consistency(
        CURRICULUM,
        karras_sigmas,
        partial(noise.lognormal_index, std=2.0),
        distances.pseudo_huber(0.01),
        noise.inverse_gap,
    ),
}
PAIRS = {name: made for name, made in OBJECTIVES.items() if name != "denoising"}
# the other rows of the table, with their usual keys
OBJECTIVES |= {
    kind: objective(kind) for kind, row in TABLE.items() if row.make is not TABLE["consistency_training"].make
}


class Net(nn.Module):
    """A small network with labels and dropout; remembers what its dropout let through."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.a, self.b, self.labels = nn.Linear(10, 32), nn.Linear(32, 9), nn.Embedding(4, 32)
        self.dropout = nn.Dropout(dropout)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, second: Tensor | None = None) -> Tensor:
        level = c_noise if second is None else c_noise - second / 2
        hidden = self.a(torch.cat([x.flatten(1), level[:, None]], 1)).tanh()
        hidden = hidden if labels is None else hidden + self.labels(labels)
        kept = self.dropout(torch.ones_like(hidden))
        self.masks.append(kept)
        return self.b(hidden * kept).view_as(x)


def net(seed: int) -> tuple[Net, Denoise]:
    torch.manual_seed(seed)
    made = Net()
    return made, Model(made, consistency_scalings())


def extra(name: str) -> nn.Module | None:
    """What a row trains beside the network."""
    row = TABLE.get(name)
    return row.extra(section(name)) if row and row.extra else None


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES, LABELS = torch.rand(B, *SHAPE, generator=generator(1)) * 2 - 1, torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_draw_is_a_pure_function_of_its_generator(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, other = (OBJECTIVES[name].draw((B, *SHAPE), OBJECTIVES[name].at(0), generator(seed)) for seed in (5, 6))
    assert torch.equal(torch.get_rng_state(), before)  # nothing comes from the global state
    torch.manual_seed(2)
    again = OBJECTIVES[name].draw((B, *SHAPE), OBJECTIVES[name].at(0), generator(5))
    for field, value in vars(first).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(again, field), value) and value.dtype in (torch.float32, torch.bool)
        else:
            assert getattr(again, field) == value
    assert again.dropout_seed == first.dropout_seed != other.dropout_seed
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.sigma, other.sigma) or (first.sigma == first.sigma[0]).all()
    assert first.noise.shape == (B, *SHAPE)
    assert first.sigma.shape == (B,)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("n", [2, 11, 151])
def test_a_drawn_pair_is_two_neighbours_of_the_grid(name: str, n: int) -> None:
    draw = PAIRS[name].draw((500, *SHAPE), {"n_timesteps": n, "mu": 0.0}, generator(3))
    grid = karras_sigmas(n)
    i = torch.searchsorted(-grid, -draw.sigma)
    assert torch.equal(grid[i], draw.sigma)
    assert torch.equal(grid[i + 1], draw.sigma_next)
    assert n > 2 or (draw.sigma == 80).all()  # N = 2: the one pair (sigma_max, sigma_min)


def test_a_denoising_draw_has_one_lognormal_level() -> None:
    draw = Denoising(-0.4, 1.0).draw((50_000, 1, 1, 1), AT, generator(4))
    logs = draw.sigma.log()
    assert logs.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert logs.std().item() == pytest.approx(1.0, abs=0.02)
    assert draw.noise.std().item() == pytest.approx(1.0, abs=0.02)


def test_dropout_seeds_fill_their_range() -> None:
    seeds = [draw_noise((1, 1, 1, 1), generator(i))[1] for i in range(200)]
    assert len(set(seeds)) == 200
    assert min(seeds) >= 0
    assert 2**60 < max(seeds) < 2**63


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_is_deterministic_and_leaves_the_global_random_state(name: str, labels: Tensor | None) -> None:
    objective = OBJECTIVES[name]
    draw = objective.draw((B, *SHAPE), objective.at(0), generator(7))
    (_, student), (_, target) = net(1), net(2)
    nets = Networks(student, student, target, FiniteDataSet(IMAGES, LABELS), net(4)[1], extra(name))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = objective.loss(nets, IMAGES, labels, draw).minimised
    assert first.shape == (B,)
    assert first.dtype == torch.float32
    assert first.isfinite().all() and (name not in PAIRS or (first > 0).all())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)  # another global state, used by nobody
    assert torch.equal(objective.loss(nets, IMAGES, labels, draw).minimised, first)
    other = replace(draw, dropout_seed=draw.dropout_seed + 1)
    assert not torch.equal(objective.loss(nets, IMAGES, labels, other).minimised, first)  # another dropout mask


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_belong_to_their_image(name: str) -> None:
    """Changing one image changes only its own loss, so that a micro-batch's identity does not depend on its
    neighbours.
    """
    objective = OBJECTIVES[name]
    draw = objective.draw((B, *SHAPE), objective.at(0), generator(8))
    _, student = net(1)
    nets = Networks(student, student, None, FiniteDataSet(IMAGES), FiniteDataSet(IMAGES), extra(name))
    changed = IMAGES.clone()
    changed[2] = 0.5
    same = objective.loss(nets, changed, LABELS, draw).minimised == objective.loss(nets, IMAGES, LABELS, draw).minimised
    assert same.tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_reaches_the_student_only(name: str) -> None:
    objective = OBJECTIVES[name]
    draw = objective.draw((B, *SHAPE), objective.at(0), generator(9))
    (student_net, student), (target_net, target), (teacher_net, teacher) = net(1), net(2), net(3)
    nets = Networks(student, student, target, teacher, teacher, extra(name))
    objective.loss(nets, IMAGES, LABELS, draw).minimised.mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student_net.parameters())
    assert all(p.grad is None for other in (target_net, teacher_net) for p in other.parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_without_a_target_the_student_is_its_own_without_gradient(name: str) -> None:
    """mu = 0: the same loss and gradient as with a copy of the student as target."""
    objective = PAIRS[name]
    draw = objective.draw((B, *SHAPE), AT, generator(10))
    student_net, student = net(1)
    copy = deepcopy(student_net)
    results = []
    for target in (None, Model(copy, consistency_scalings())):
        loss = objective.loss(Networks(student, student, target, FiniteDataSet(IMAGES)), IMAGES, LABELS, draw).minimised
        results.append([loss, *torch.autograd.grad(loss.mean(), list(student_net.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_the_engine_is_called_once_and_the_bare_student_makes_the_target(name: str) -> None:
    """What wraps the student (an engine) must see one forward pass for one backward pass."""
    _, student = net(1)
    calls: list[tuple[str, bool]] = []

    def recorder(who: str) -> Denoise:
        def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            calls.append((who, torch.is_grad_enabled()))
            return student(x, sigma, labels)

        return call

    draw = PAIRS[name].draw((B, *SHAPE), AT, generator(11))
    PAIRS[name].loss(Networks(recorder("engine"), recorder("bare"), None, FiniteDataSet(IMAGES)), IMAGES, LABELS, draw)
    assert sorted(calls) == [("bare", False), ("engine", True)]


@pytest.mark.parametrize("name", PAIRS)
def test_student_and_target_share_their_dropout_mask(name: str) -> None:
    (student_net, student), (target_net, target), (_, teacher) = (
        net(1),
        net(2),
        net(3),
    )  # the teacher has dropout too and must not disturb
    masks = []
    for seed in (12, 13):
        draw = PAIRS[name].draw((B, *SHAPE), AT, generator(seed))
        PAIRS[name].loss(Networks(student, student, target, teacher), IMAGES, LABELS, draw)
        assert torch.equal(student_net.masks[-1], target_net.masks[-1])
        assert set(student_net.masks[-1].unique().tolist()) == {0.0, 2.0}
        masks.append(student_net.masks[-1])
    assert not torch.equal(*masks)


def test_same_dropout_restores_the_global_state_even_after_an_error() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="within"), same_dropout(1, torch.device("cpu")):
        torch.rand(3)
        raise RuntimeError("within")
    assert torch.equal(torch.get_rng_state(), before)
    drawn = []
    for seed in (1, 1, 2):
        with same_dropout(seed, torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: dropout masks of CUDA")
def test_same_dropout_on_a_gpu() -> None:
    device = torch.device("cuda")
    drop, ones = nn.Dropout(0.5), torch.ones(1000, device=device)
    torch.manual_seed(5)
    before = torch.cuda.get_rng_state(device)
    masks = []
    for seed in (1, 1, 2):
        with same_dropout(seed, device):
            masks.append(drop(ones))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(torch.cuda.get_rng_state(device), before)


@contextmanager
def never_waits(device: torch.device) -> Iterator[None]:
    """Inside, CUDA refuses what makes the host wait."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("device", DEVICES)  # nothing waits on a CPU, which shows that the test fits a new objective
def test_the_host_waits_for_no_gpu(device: torch.device, name: str) -> None:
    labels, images = onto(LABELS, device), onto(IMAGES, device)
    made = net(1)[0].to(device)
    model, more = Model(made, consistency_scalings()), extra(name)
    networks = Networks(model, model, model, model, model, more and more.to(device))
    draws = torch.Generator(device).manual_seed(3)
    with never_waits(device):
        draw = OBJECTIVES[name].draw(images.shape, OBJECTIVES[name].at(0), draws)
        OBJECTIVES[name].loss(networks, images, labels, draw).minimised.mean().backward()
    assert all(parameter.grad is not None for parameter in made.b.parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_the_pair_is_what_the_algorithms_say(name: str) -> None:
    """Algorithms 2 and 3 written out: what student, target and teacher are given, and the value of the loss."""
    objective, teacher = PAIRS[name], FiniteDataSet(IMAGES, LABELS)
    given: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}

    def recorder(who: str, factor: float) -> Denoise:
        def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            given[who] = (x, sigma, labels)
            return factor * x

        return call

    draw = objective.draw((B, *SHAPE), AT, generator(14))
    nets = Networks(recorder("student", 0.5), recorder("bare", 9.0), recorder("target", 0.25), teacher)
    loss = objective.loss(nets, IMAGES, LABELS, draw).minimised
    s, t = (v.view(-1, 1, 1, 1) for v in (draw.sigma, draw.sigma_next))
    x = IMAGES + s * draw.noise
    if name.startswith("cd"):
        slope = (x - teacher(x, draw.sigma, LABELS)) / s
        x_next = x + (t - s) * slope
        if name == "cd_heun":
            x_next = x + (t - s) * (slope + (x_next - teacher(x_next, draw.sigma_next, LABELS)) / t) / 2
    else:
        x_next = IMAGES + t * draw.noise  # the same noise
    assert "bare" not in given
    for who, wanted, sigma in (("student", x, draw.sigma), ("target", x_next, draw.sigma_next)):
        torch.testing.assert_close(given[who][0], wanted, rtol=1e-5, atol=1e-5)
        assert given[who][1] is sigma
        assert given[who][2] is LABELS
    weight = 1 / (draw.sigma - draw.sigma_next) if name == "ict" else torch.ones(B)
    distance = {"cd_euler": distances.l1, "ict": distances.pseudo_huber(0.01)}.get(name, distances.l2)
    torch.testing.assert_close(loss, weight * distance(0.5 * x, 0.25 * x_next), rtol=1e-4, atol=1e-6)


def test_distillation_without_a_teacher_is_a_mistake_of_the_caller() -> None:
    draw = OBJECTIVES["cd_heun"].draw((B, *SHAPE), AT, generator(15))
    _, student = net(1)
    with pytest.raises(AssertionError, match="needs a teacher"):
        OBJECTIVES["cd_heun"].loss(Networks(student, student), IMAGES, LABELS, draw)


@pytest.mark.parametrize("sigma_data", [0.5, 0.3])
@pytest.mark.parametrize("name", ENUMERABLE)
def test_the_exact_denoiser_minimises_the_denoising_loss(name: str, sigma_data: float) -> None:
    """E[loss(D + e)] - E[loss(D)] = weight |e|^2 / pixels exactly: no other function of x and sigma is better, however
    it differs.

    The expectation is over the images that may have made x, so nothing is sampled.
    """
    case, n = ENUMERABLE[name], 8
    shape = case.means.shape[1:]
    x, error = randn(n, *shape, seed=1), randn(n, *shape, seed=2)
    sigma = torch.logspace(-1, 1, n, dtype=torch.float64)
    images, weights = posterior(case, x, sigma)
    q = len(images)
    z = (x - images) / sigma.view(-1, 1, 1, 1)
    draw = pairs(sigma.repeat(q), sigma.repeat(q), z.flatten(0, 1), 0)

    def expected(shift: Tensor) -> Tensor:
        student: Denoise = lambda x, sigma, labels: case.denoise(x, sigma, labels) + shift.repeat(q, 1, 1, 1)  # noqa: E731
        loss = (
            Denoising(sigma_data=sigma_data)
            .loss(Networks(student, student), images.flatten(0, 1), None, draw)
            .minimised
        )
        return (weights * loss.view(q, n)).sum(0)

    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    excess = expected(error) - expected(torch.zeros_like(error))
    torch.testing.assert_close(excess, weight * error.square().flatten(1).mean(1), rtol=1e-9, atol=1e-10)
    spread = (weights[..., None, None, None] * (images - case.denoise(x, sigma, None)) ** 2).sum(0)
    torch.testing.assert_close(
        expected(torch.zeros_like(error)), weight * spread.flatten(1).mean(1), rtol=1e-9, atol=1e-10
    )


def test_the_denoising_loss_of_a_plain_network_starts_near_one() -> None:
    """EDM's scalings and weighting: a network that returns 0 has a loss of 1 at any noise level for data of variance
    sigma_data^2.
    """
    images = 0.5 * torch.randn(20_000, 1, 2, 2, generator=generator(16))
    zero = Model(lambda x, c_noise, labels: torch.zeros_like(x), edm_scalings())
    for level in (0.01, 0.5, 20.0):
        sigma = torch.full((20_000,), level)
        loss = (
            Denoising()
            .loss(
                Networks(zero, zero), images, None, pairs(sigma, sigma, draw_noise(images.shape, generator(17))[0], 0)
            )
            .minimised
        )
        assert loss.mean().item() == pytest.approx(1, abs=0.03)
