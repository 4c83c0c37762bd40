"""Kinds of objective that differentiate the student forward: their keys, and how they are made."""

from typing import Annotated, Literal

from pydantic import Field

from cmdist.core.objectives.base import Objective
from cmdist.core.objectives.scm import Scm
from cmdist.kinds.kind import Kind, Parts, edm
from cmdist.nets.weighting import Weighting
from cmdist.sections import Finite, PositiveFloat, Section, content, identity


class ScmTraining(Section):
    """sCT: sCM from images alone."""

    kind: Annotated[Literal["scm_training"], identity("what is learned")]
    sigma_mean: Annotated[Finite, identity("of ln sigma")] = -1.0
    sigma_std: Annotated[PositiveFloat, identity("of ln sigma")] = 1.4
    tangent_norm: Annotated[
        Literal["l2", "rms"],
        identity("what a tangent is divided by: its norm, as the paper writes, or its root mean square, sqrt(D) less"),
    ] = "l2"
    tangent_c: Annotated[PositiveFloat, identity("added to that, so that small tangents stay small")] = 0.1
    warm_up_steps: Annotated[int, Field(ge=0), identity("in which the network's own derivative is blended in")] = 10_000


class ScmDistillation(ScmTraining):
    """sCD: sCM along a teacher's ODE."""

    kind: Annotated[Literal["scm_distillation"], identity("what is learned")]  # type: ignore[assignment]
    teacher: Annotated[str, content("whom the student follows, compared by its weights; exact: the data's closed form")]


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


ROWS: dict[str, Kind] = {
    "scm_distillation": Kind(ScmDistillation, _scm, edm, "consistency", extra=_weighting, jvp=True),
    "scm_training": Kind(ScmTraining, _scm, edm, "consistency", extra=_weighting, jvp=True),
}
