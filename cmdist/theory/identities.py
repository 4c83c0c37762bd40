"""How well each objective knows its own solution: the loss's mean gradient there, on data for which it is known.

Data of one pixel, N(0.3, 0.7^2): denoiser, consistency function and mean denoiser are formulas, and so is the law of
the images that a noisy pixel may come from. What an objective says of a student f at x is the mean, over those images,
of its loss's derivative by f(x). At the solution that is 0, or the error of the steps that the objective takes. Its
root mean square over x and noise levels is divided by that of a student which is wrong by a tenth.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cmdist.core import exact
from cmdist.core.noise import expand, karras_sigmas
from cmdist.core.objectives.base import Draw, Networks
from cmdist.core.studies.fixed_points import hermite
from cmdist.kinds.distances import plain
from cmdist.kinds.kind import Parts
from cmdist.kinds.objectives import OBJECTIVES
from cmdist.report.tables import Row
from cmdist.sections import Noise, Section

MEAN, STD = 0.3, 0.7
DATA = exact.Gaussian(MEAN, STD)
WRONG = 0.1
DRAWS, NODES, SEED = 256, 16, 5
CONSTANT = 100.0  # what makes an adaptive weight 1 / (error + c) nearly the same for all images

Student = Callable[..., Tensor]
Solution = Callable[[float, Mapping[str, Any]], Student]  # how wrong, and the objective's keys


def denoiser(wrong: float, keys: Mapping[str, Any]) -> Student:
    """E[image | x]; with a second noise level the mean of that along the ODE."""

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_next: Tensor | None = None) -> Tensor:
        return MEAN + (1 + wrong) * (DATA(x, sigma, labels, sigma_next) - MEAN)

    return denoise


def function(low: float, wrong: float, keys: Mapping[str, Any]) -> Student:
    """The consistency function to the noise level `low`, where one with another exponent is the identity too."""

    def f(x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_next: Tensor | None = None) -> Tensor:
        share = (STD**2 + low**2) / (STD**2 + sigma**2)
        return MEAN + (x - MEAN) * expand(share ** (0.5 * (1 + wrong)), x)

    return f


def halved(wrong: float, keys: Mapping[str, Any]) -> Student:
    """What takes one step of Euler's where the denoiser takes two."""
    grid = karras_sigmas(2 * keys["first_steps"] + 1).double()

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_next: Tensor | None = None) -> Tensor:
        place = (grid[:, None] - sigma).abs().argmin(0)
        half, end = grid[place + 1], grid[place + 2]
        shrink = torch.ones_like(sigma)
        for here, there in ((sigma, half), (half, end)):
            shrink = shrink * (1 + (there - here) / here * here**2 / (STD**2 + here**2))
        kappa = 1 - sigma * (shrink - 1) / (end - sigma)
        return MEAN + (1 + wrong) * (x - MEAN) * expand(kappa, x)

    return denoise


@dataclass(frozen=True)
class Identity:
    """A row: what holds at the solution, which that is, and the keys to try it with, coarse to fine."""

    words: str
    solution: Solution
    knob: str  # what is made finer; '': nothing needs to be
    tried: tuple[tuple[float, Mapping[str, Any]], ...]


_L2 = {"distance": {"kind": "l2"}}
_JUMPS = {"levels": {"kind": "sorted", "matching": 0.0}}
_FROM_LOW, _FROM_ZERO = partial(function, 0.002), partial(function, 0.0)


def _levels(n: int) -> dict[str, Any]:
    return {"curriculum": {"kind": "constant", "n_timesteps": n}}


def _each(keys: Callable[[Any], Mapping[str, Any]], *knobs: float) -> tuple[tuple[float, Mapping[str, Any]], ...]:
    return tuple((knob, keys(knob)) for knob in knobs)


_COUNTS = (20, 80, 320)
_GAPS = (16.0, 64.0, 256.0)
IDENTITIES: dict[str, Identity] = {
    "denoising": Identity("D(x, σ) = E[image given x]", denoiser, "", ((1, {}),)),
    "consistency_distillation": Identity(
        "f(x, σ) = f(Heun's step of the teacher, σ')", _FROM_LOW, "levels N", _each(_levels, *_COUNTS)
    ),
    "consistency_training": Identity(
        "f(x, σ) = E[f(image + σ' noise, σ') given x]", _FROM_LOW, "levels N", _each(_levels, *_COUNTS)
    ),
    "easy_consistency_tuning": Identity(
        "the same, gaps that shrink", _FROM_LOW, "1 / gap", _each(lambda q: {"q": q, **_L2}, *_GAPS)
    ),
    "truncated_consistency_training": Identity(
        "the same above a boundary, the first stage below",
        _FROM_LOW,
        "1 / gap",
        _each(lambda q: {"q": q, **_L2}, *_GAPS),
    ),
    "consistency_mid_training": Identity(
        "f at each point = the trajectory's end", _FROM_LOW, "points", _each(lambda n: {"points": n}, 32, 128, 512)
    ),
    "progressive_distillation": Identity("one Euler step = the teacher's two", halved, "", ((1, {"first_steps": 8}),)),
    "continuous_distillation": Identity("df/dσ = 0 along the teacher's ODE", _FROM_LOW, "", ((1, {}),)),
    "continuous_training": Identity("E[df/dσ given x] = 0 along image + σ noise", _FROM_LOW, "", ((1, {}),)),
    "scm_distillation": Identity(
        "df/dθ = 0 along the teacher's ODE", _FROM_ZERO, "", ((1, {"tangent_c": CONSTANT, "warm_up_steps": 0}),)
    ),
    "scm_training": Identity(
        "E[df/dθ given x] = 0", _FROM_ZERO, "", ((1, {"tangent_c": CONSTANT, "warm_up_steps": 0}),)
    ),
    "alpha_flow": Identity(
        "u = αv + (1 - α) u from the point αv leads to",
        denoiser,
        "1 / α",
        _each(
            lambda n: {"curriculum": {"kind": "constant", "alpha": 1 / n}, "matching": 0.0, "eps": CONSTANT},
            16,
            64,
            256,
        ),
    ),
    "mean_flow": Identity("E[u + (a - r) du/da - v given x] = 0", denoiser, "", ((1, {"power": 0.0, **_JUMPS}),)),
    "improved_mean_flow": Identity(
        "the same, du/da along its own velocity", denoiser, "", ((1, {"power": 0.0, **_JUMPS}),)
    ),
    "lagrangian": Identity("u - (a - r) du/dr = v where it lands", denoiser, "", ((1, _JUMPS),)),
}


def residual(kind: str, identity: Identity, keys: Mapping[str, Any], wrong: float = 0.0) -> float:
    """The root mean square, over draws of x and noise levels, of the loss's mean derivative by the student's output."""
    row, noise = OBJECTIVES[kind], Noise()
    parts = Parts(noise, (1, 1, 1), 100, lambda of: plain(of, (1, 1, 1)))
    section = sectioned(kind, keys)
    made = row.make(section, parts)
    generator = torch.Generator().manual_seed(SEED)
    draw = _wide(made.draw((DRAWS, 1, 1, 1), made.at(0), generator))
    images, noises, weights = _sources(draw.sigma, generator)
    wide: dict[str, Any] = {k: v.repeat_interleave(NODES) for k, v in vars(draw).items() if _of_levels(v)}
    many = dataclasses.replace(draw, **{**wide, "noise": noises})
    solution = identity.solution(wrong, section.model_dump())
    shift = torch.zeros(DRAWS * NODES, dtype=torch.float64, requires_grad=True)

    def shifted(x: Tensor, sigma: Tensor, *rest: Any) -> Tensor:
        each = shift if len(x) == len(shift) else shift.repeat(len(x) // len(shift))
        return solution(x, sigma, *rest) + expand(each, x)

    scalings = row.scalings(section, noise)
    known = partial(exact.Known, scalings=scalings, sigma_of=exact.level_of(noise.c_noise, noise.sigma_data))
    student = known(shifted)
    networks = Networks(student, student, None, DATA, known(solution), _no_weighting if row.extra else None)
    losses = made.loss(networks, images, None, many).minimised
    (slope,) = torch.autograd.grad((weights * losses).sum(), shift)
    return float(slope.view(DRAWS, NODES).sum(1).square().mean().sqrt())


def table() -> list[Row]:
    """A row for each kind and each of the keys that it is tried with."""
    rows: list[Row] = []
    for kind, identity in IDENTITIES.items():
        before: tuple[float, float] | None = None
        for knob, keys in identity.tried:
            relative = residual(kind, identity, keys) / residual(kind, identity, keys, WRONG)
            order = math.log(before[1] / relative) / math.log(knob / before[0]) if before else ""
            before = (knob, relative)
            rows.append(
                {
                    "objective": kind,
                    "identity": identity.words,
                    "finer": identity.knob,
                    "knob": float(knob) if identity.knob else "",
                    "residual": relative,
                    "order": order,
                }
            )
    return rows


def sectioned(kind: str, keys: Mapping[str, Any]) -> Section:
    """The keys of a kind; those that name runs name none that is needed."""
    model = OBJECTIVES[kind].section
    named = {name: "runs/first" for name, field in model.model_fields.items() if field.is_required()}
    return model(**{**named, **keys, "kind": kind})


def _wide(draw: Draw) -> Draw:
    wide: dict[str, Any] = {
        k: v.double() for k, v in vars(draw).items() if isinstance(v, Tensor) and v.is_floating_point()
    }
    return dataclasses.replace(draw, **wide)


def _of_levels(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _sources(sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images and noises (DRAWS NODES, 1, 1, 1) that may have made one x for each of sigma (DRAWS,), by Gauss-Hermite
    quadrature, and their probabilities.
    """
    h, w = hermite(NODES)
    total = STD**2 + sigma**2
    x = MEAN + total.sqrt() * torch.randn(len(sigma), generator=generator, dtype=torch.float64)
    images = ((STD**2 * x + sigma**2 * MEAN) / total)[:, None] + (STD * sigma / total.sqrt())[:, None] * h
    noises = (x[:, None] - images) / sigma[:, None]
    return images.view(-1, 1, 1, 1), noises.view(-1, 1, 1, 1), w.repeat(len(sigma))


def _no_weighting(sigma: Tensor) -> Tensor:
    return torch.zeros_like(sigma)
