"""The kinds of objective that need no derivative along a path: tuning, truncation, mid-training, jumps, halvings."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from cmdist.core import noise
from cmdist.core.noise import Weighting
from cmdist.core.objectives import alpha_flow, cmt, ect, progressive, tcm
from cmdist.core.objectives.base import Objective
from cmdist.kinds.distances import DISTANCES, L2, PseudoHuber
from cmdist.kinds.guided import Followed
from cmdist.kinds.kind import Kind, Parts, bounded, edm
from cmdist.sections import (
    MOST,
    Finite,
    Noise,
    OneOf,
    Positive,
    PositiveFloat,
    Section,
    Spread,
    content,
    identity,
    warned,
)


class EasyConsistencyTuning(Section):
    """Easy consistency tuning (ECT)."""

    kind: Annotated[Literal["easy_consistency_tuning"], identity("what is learned")]
    distance: Annotated[Section, OneOf(DISTANCES, "pseudo_huber")] = PseudoHuber(kind="pseudo_huber", c=1e-8)
    weighting: Annotated[Literal["uniform", "inverse_gap", "edm"], identity("lambda; edm: that of denoising")] = (
        "inverse_gap"
    )
    sigma_mean: Annotated[Finite, identity("of ln sigma, which is truncated to the noise levels")] = -1.1
    sigma_std: Annotated[Spread, identity("of ln sigma")] = 2.0
    q: Annotated[float, Field(gt=1, le=1e9), identity("1 / gap of the first stage; each has q times more")] = 2.0
    stage_steps: Annotated[Positive | None, identity("steps of a stage; null: the first one never ends")] = None
    k: Annotated[float, Field(ge=0, le=1e9), identity("the gap is 1 + k/2 times as wide at sigma 0")] = 8.0
    b: Annotated[PositiveFloat, identity("how fast that falls with sigma")] = 1.0
    max_ratio: Annotated[float, Field(gt=0, le=1), identity("of sigma_next to sigma; 1: no limit but the stages'")] = (
        1.0
    )


class TruncatedConsistencyTraining(EasyConsistencyTuning):
    """The second stage of a truncated consistency model (TCM); the first is easy_consistency_tuning."""

    kind: Annotated[Literal["truncated_consistency_training"], identity("what is learned")]  # type: ignore[assignment]
    first: Annotated[str, content("the run of the first stage, where the student begins and which stays its boundary")]
    boundary: Annotated[PositiveFloat, identity("the noise level above which the student is trained")] = 1.0
    boundary_share: Annotated[
        float, Field(gt=0, lt=1), identity("part of a micro-batch at the boundary, in whole images")
    ] = 0.25
    boundary_weight: Annotated[PositiveFloat, identity("of the mean of their losses")] = 0.1
    sigma_mean: Annotated[Finite, identity("of ln sigma, which is truncated at the boundary")] = 0.0
    sigma_std: Annotated[Spread, identity("times a number of Student's law, is added to that")] = 0.2
    df: Annotated[PositiveFloat, identity("degrees of freedom of that law")] = 0.01
    q: Annotated[float, Field(gt=1, le=1e9), identity("1 / gap of the first stage")] = 1000.0


class ConsistencyMidTraining(Followed):
    """Consistency mid-training (CMT)."""

    kind: Annotated[Literal["consistency_mid_training"], identity("what is learned")]  # type: ignore[assignment]
    distance: Annotated[Section, OneOf(DISTANCES, "l2")] = L2(kind="l2")
    points: Annotated[
        int, Field(ge=2, le=4096), identity("of a trajectory, each an evaluation of teacher and student")
    ] = 16
    at_once: Annotated[
        Positive | None,
        warned("points that go through the student together; null: all. Fewer need less memory, not time"),
    ] = None


class SigmoidAlpha(Section):
    """alpha falls from 1 to alpha_min along a sigmoid."""

    kind: Annotated[Literal["sigmoid"], identity("how alpha follows from the step")]
    start: Annotated[int, Field(ge=0, le=MOST), identity("the step up to which alpha is 1")] = 0
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


def _truncated(keys: TruncatedConsistencyTraining, parts: Parts) -> Objective:
    return tcm.Truncated(
        stages=_stages(keys, parts.noise),
        boundary=keys.boundary,
        share=keys.boundary_share,
        boundary_weight=keys.boundary_weight,
        sigma_mean=keys.sigma_mean,
        sigma_std=keys.sigma_std,
        df=keys.df,
        sigma_max=parts.noise.sigma_max,
        distance=parts.distance(keys.distance),
        weighting=weighting(keys.weighting, parts.noise),
    )


def _second_stage(config: Any) -> str | None:
    keys, noise, b = config.objective, config.noise, config.train.micro_batch
    some = int(b * keys.boundary_share)
    if config.init != keys.first:
        return f"the student begins as the first stage: init must be {keys.first}, not {config.init or 'null'}"
    if not noise.sigma_min < keys.boundary < noise.sigma_max:
        return f"boundary ({keys.boundary}) must lie between noise.sigma_min ({noise.sigma_min}) and noise.sigma_max"
    if some == 0:
        return f"boundary_share ({keys.boundary_share}) of train.micro_batch ({b}) is less than one image"
    if config.sampling.times[-1] < keys.boundary:
        return f"sampling.times must not go below the boundary ({keys.boundary}), where the student is not trained"
    return None


def _mid_training(keys: ConsistencyMidTraining, parts: Parts) -> Objective:
    n, points = parts.noise, keys.points
    at_once = min(keys.at_once or points, points)
    return cmt.MidTraining(points, at_once, n.sigma_min, n.sigma_max, parts.distance(keys.distance))


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


class ProgressiveDistillation(Section):
    """Progressive distillation."""

    kind: Annotated[Literal["progressive_distillation"], identity("what is learned")]
    teacher: Annotated[str, content("the first teacher, a denoiser with weights, compared by them")]
    first_steps: Annotated[int, Field(ge=1, le=2**20), identity("N of the first stage, a power of 2")] = 4096
    stage_steps: Annotated[Positive, identity("steps of a stage; of N <= 2 twice as many")] = 50000
    distance: Annotated[Section, OneOf(DISTANCES, "l2")] = L2(kind="l2")
    weighting: Annotated[Literal["uniform", "truncated_snr"], identity("lambda; max(1 / sigma^2, 1)")] = "truncated_snr"

    @field_validator("first_steps")
    @classmethod
    def _halves(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("it is halved down to 1, so it must be a power of 2")
        return value

    @field_validator("teacher")
    @classmethod
    def _has_weights(cls, value: str) -> str:
        if value == "exact":
            raise ValueError("the student becomes the teacher, so the first one must have weights: a run or a file")
        return value


def _progressive(keys: ProgressiveDistillation, parts: Parts) -> Objective:
    n = parts.noise
    return progressive.ProgressiveDistillation(
        stages=progressive.Stages(keys.first_steps, keys.stage_steps),
        grid=partial(noise.karras_sigmas, sigma_min=n.sigma_min, sigma_max=n.sigma_max, rho=n.rho),
        distance=parts.distance(keys.distance),
        weighting=weighting(keys.weighting, n),
    )


def _student_steps(keys: ProgressiveDistillation, step: int) -> int:
    return progressive.Stages(keys.first_steps, keys.stage_steps).at(max(step - 1, 0))[0]


def _starts_from_teacher(config: Any) -> str | None:
    if config.init != "teacher":
        return f"the student begins as its teacher: init must be teacher, not {config.init or 'null'}"
    return None


def weighting(name: str, n: Noise) -> Weighting:
    """lambda(sigma, sigma_next) by its name."""

    def edm_weight(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return noise.edm_weight(sigma, n.sigma_data)

    named: dict[str, Weighting] = {"uniform": noise.uniform, "inverse_gap": noise.inverse_gap, "edm": edm_weight}
    return (named | {"truncated_snr": noise.truncated_snr})[name]


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
    "truncated_consistency_training": Kind(
        TruncatedConsistencyTraining,
        _truncated,
        bounded,
        "consistency",
        check=_second_stage,
        frozen="first",
        frozen_makes="consistency",
        frozen_dropout=True,
    ),
    "consistency_mid_training": Kind(ConsistencyMidTraining, _mid_training, bounded, "consistency"),
    "alpha_flow": Kind(AlphaFlow, _alpha_flow, edm, "jump", second=True),
    "progressive_distillation": Kind(
        ProgressiveDistillation,
        _progressive,
        edm,
        "steps",
        steps=_student_steps,
        check=_starts_from_teacher,
        teacher_is_student=True,
    ),
}
