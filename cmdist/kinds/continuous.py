"""Kinds of objective that differentiate the student forward: their keys, and how they are made."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from cmdist.core import distances, noise
from cmdist.core.objectives.base import Objective
from cmdist.core.objectives.continuous import Continuous
from cmdist.core.objectives.scm import Scm
from cmdist.kinds.distances import DISTANCES, L1, L2, Features, Lpips
from cmdist.kinds.guided import Followed
from cmdist.kinds.kind import Kind, Parts, bounded, edm
from cmdist.nets.weighting import Weighting
from cmdist.sections import MOST, Finite, OneOf, PositiveFloat, Section, Spread, identity


class ScmTraining(Section):
    """sCT: sCM from images alone."""

    kind: Annotated[Literal["scm_training"], identity("what is learned")]
    sigma_mean: Annotated[Finite, identity("of ln sigma")] = -1.0
    sigma_std: Annotated[Spread, identity("of ln sigma")] = 1.4
    tangent_norm: Annotated[
        Literal["l2", "rms"],
        identity("what a tangent is divided by: its norm, as the paper writes, or its root mean square, sqrt(D) less"),
    ] = "l2"
    tangent_c: Annotated[PositiveFloat, identity("added to that, so that small tangents stay small")] = 0.1
    warm_up_steps: Annotated[int, Field(ge=0, le=MOST), identity("to blend in the network's own derivative")] = 10_000


class ScmDistillation(Followed, ScmTraining):
    """sCD: sCM along a teacher's ODE."""

    kind: Annotated[Literal["scm_distillation"], identity("what is learned")]  # type: ignore[assignment]


def _scm(keys: ScmTraining, parts: Parts) -> Objective:
    return Scm(
        distillation=isinstance(keys, ScmDistillation),
        sigma_mean=keys.sigma_mean,
        sigma_std=keys.sigma_std,
        sigma_data=parts.noise.sigma_data,
        norm=keys.tangent_norm,
        c=keys.tangent_c,
        warm_up_steps=keys.warm_up_steps,
    )


def _weighting(keys: ScmTraining) -> Weighting:
    return Weighting()


class ContinuousTraining(Section):
    """Consistency training in continuous time (Theorem 6)."""

    kind: Annotated[Literal["continuous_training"], identity("what is learned")]
    distance: Annotated[Section, OneOf(DISTANCES, "l2")] = L2(kind="l2")
    weighting: Annotated[
        Literal["uniform", "density"], identity("lambda: 1, or the density of sigma, which cancels the grid's")
    ] = "density"

    @model_validator(mode="after")
    def _smooth(self) -> "ContinuousTraining":
        through = getattr(self, "gradient", "stopped") == "through"
        allowed = (L1, L2) if through else (L2, Lpips, Features)
        if not isinstance(self.distance, allowed):
            names = " or ".join(name for name, section in DISTANCES.items() if section in allowed)
            raise ValueError(
                f"distance kind {self.distance.kind} has no such limit here: with the gradient "  # type: ignore[attr-defined]
                f"{'through the derivative' if through else 'stopped'} {names} is allowed"
            )
        return self


class ContinuousDistillation(Followed, ContinuousTraining):
    """Consistency distillation in continuous time (Theorems 3 to 5)."""

    kind: Annotated[Literal["continuous_distillation"], identity("what is learned")]  # type: ignore[assignment]
    gradient: Annotated[
        Literal["stopped", "through"],
        identity("the target is the student held fixed (Theorem 5), or it goes through the derivative (3, 4)"),
    ] = "stopped"


def _continuous(keys: ContinuousTraining, parts: Parts) -> Objective:
    n, through = parts.noise, isinstance(keys, ContinuousDistillation) and keys.gradient == "through"
    growth = partial(noise.karras_growth, sigma_min=n.sigma_min, sigma_max=n.sigma_max, rho=n.rho)
    distance = parts.distance(keys.distance)
    bent = distance.curvature if isinstance(distance, distances.Perceptual) else distances.l2_curvature
    return Continuous(
        distillation=isinstance(keys, ContinuousDistillation),
        level=partial(noise.karras_level, sigma_min=n.sigma_min, sigma_max=n.sigma_max, rho=n.rho),
        growth=growth,
        weighting=torch.ones_like if keys.weighting == "uniform" else lambda sigma: 1 / growth(sigma),
        curvature=None if through else bent,
        norm="l1" if isinstance(keys.distance, L1) else "l2",
    )


ROWS: dict[str, Kind] = {
    "continuous_distillation": Kind(
        ContinuousDistillation,
        _continuous,
        bounded,
        "consistency",
        through=lambda keys: bool(keys.gradient == "through"),
    ),
    "continuous_training": Kind(ContinuousTraining, _continuous, bounded, "consistency"),
    "scm_distillation": Kind(ScmDistillation, _scm, edm, "consistency", extra=_weighting),
    "scm_training": Kind(ScmTraining, _scm, edm, "consistency", extra=_weighting),
}
