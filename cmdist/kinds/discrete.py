"""The kinds of objective that need no derivative along a path: tuning, truncation, mid-training, jumps, halvings."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from cmdist.core import noise
from cmdist.core.noise import Weighting
from cmdist.core.objectives import alpha_flow, ect
from cmdist.core.objectives.base import Objective
from cmdist.kinds.distances import DISTANCES, PseudoHuber
from cmdist.kinds.kind import Kind, Parts, bounded, edm
from cmdist.sections import Finite, Noise, OneOf, Positive, PositiveFloat, Section, Spread, identity


class EasyConsistencyTuning(Section):
    """Easy consistency tuning (ECT)."""

    kind: Annotated[Literal["easy_consistency_tuning"], identity("what is learned")]
    distance: Annotated[Section, OneOf(DISTANCES, "pseudo_huber")] = PseudoHuber(kind="pseudo_huber", c=1e-8)
    weighting: Annotated[Literal["uniform", "inverse_gap", "edm"], identity("lambda; edm: that of denoising")] = (
        "inverse_gap"
    )
    sigma_mean: Annotated[Finite, identity("of ln sigma, which is truncated to the noise levels")] = -1.1
    sigma_std: Annotated[Spread, identity("of ln sigma")] = 2.0
    q: Annotated[
        float, Field(gt=1, allow_inf_nan=False), identity("1 / gap of the first stage; each has q times more")
    ] = 2.0
    stage_steps: Annotated[Positive | None, identity("steps of a stage; null: the first one never ends")] = None
    k: Annotated[float, Field(ge=0, allow_inf_nan=False), identity("the gap is 1 + k/2 times as wide at sigma 0")] = 8.0
    b: Annotated[PositiveFloat, identity("how fast that falls with sigma")] = 1.0
    max_ratio: Annotated[float, Field(gt=0, le=1), identity("of sigma_next to sigma; 1: no limit but the stages'")] = (
        1.0
    )


class SigmoidAlpha(Section):
    """alpha falls from 1 to alpha_min along a sigmoid."""

    kind: Annotated[Literal["sigmoid"], identity("how alpha follows from the step")]
    start: Annotated[int, Field(ge=0), identity("the step up to which alpha is 1")] = 0
    total_steps: Annotated[
        Positive | None, identity("the step of alpha_min; null: train.steps at the first start, then fixed")
    ] = None
    gamma: Annotated[PositiveFloat, identity("steepness")] = 25.0
    alpha_min: Annotated[float, Field(gt=0, lt=0.5), identity("the last alpha; what is nearer to 1 is 1")] = 0.005


class ConstantAlpha(Section):
    """The same alpha at every step."""

    kind: Annotated[Literal["constant"], identity("how alpha follows from the step")]
    alpha: Annotated[
        float, Field(gt=0, le=1), identity("1: trajectory flow matching; 0.5 with velocity student: as shortcut models")
    ] = 1.0


ALPHAS: dict[str, type[Section]] = {"sigmoid": SigmoidAlpha, "constant": ConstantAlpha}


class AlphaFlow(Section):
    """alpha-Flow."""

    kind: Annotated[Literal["alpha_flow"], identity("what is learned")]
    curriculum: Annotated[Section, OneOf(ALPHAS, "sigmoid")] = SigmoidAlpha(kind="sigmoid")
    velocity: Annotated[
        Literal["image", "student"], identity("by which a part alpha of the way is gone: noise - image, or its own")
    ] = "image"
    matching: Annotated[float, Field(ge=0, le=1), identity("part of a micro-batch that learns the velocity itself")] = (
        0.5
    )
    sigma_mean: Annotated[Finite, identity("of ln sigma and ln sigma_next, truncated to the noise levels")] = -0.4
    sigma_std: Annotated[Spread, identity("of both")] = 1.0
    eps: Annotated[PositiveFloat, identity("of the weight alpha / (error + eps)")] = 1e-3


def _alpha_flow(keys: AlphaFlow, parts: Parts) -> Objective:
    n, c = parts.noise, keys.curriculum
    if isinstance(c, ConstantAlpha):
        fixed = c.alpha
        schedule: Callable[[int], float] = lambda step: fixed  # noqa: E731
    else:
        assert isinstance(c, SigmoidAlpha)
        schedule = alpha_flow.Sigmoid(c.start, c.total_steps or parts.steps, c.gamma, c.alpha_min)
    return alpha_flow.AlphaFlow(
        alpha=schedule,
        by_student=keys.velocity == "student",
        matching=keys.matching,
        sigma_mean=keys.sigma_mean,
        sigma_std=keys.sigma_std,
        sigma_min=n.sigma_min,
        sigma_max=n.sigma_max,
        eps=keys.eps,
    )


def weighting(name: str, n: Noise) -> Weighting:
    """lambda(sigma, sigma_next) by its name."""

    def edm(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return noise.edm_weight(sigma, n.sigma_data)

    return {"uniform": noise.uniform, "inverse_gap": noise.inverse_gap, "edm": edm}[name]


def _stages(keys: EasyConsistencyTuning, n: Noise) -> ect.Stages:
    return ect.Stages(keys.q, keys.stage_steps, keys.k, keys.b, keys.max_ratio, n.sigma_min)


def _tuning(keys: EasyConsistencyTuning, parts: Parts) -> Objective:
    return ect.EasyConsistencyTuning(
        stages=_stages(keys, parts.noise),
        sigma_mean=keys.sigma_mean,
        sigma_std=keys.sigma_std,
        sigma_max=parts.noise.sigma_max,
        distance=parts.distance(keys.distance),
        weighting=weighting(keys.weighting, parts.noise),
    )


ROWS: dict[str, Kind] = {
    "easy_consistency_tuning": Kind(EasyConsistencyTuning, _tuning, bounded, "consistency"),
    "alpha_flow": Kind(AlphaFlow, _alpha_flow, edm, "jump", second=True),
}
