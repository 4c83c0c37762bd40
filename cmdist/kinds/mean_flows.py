"""Kinds of objective that learn jumps by a derivative along the path or in the second noise level."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from cmdist.core import preconditioning
from cmdist.core.objectives import mean_flow
from cmdist.core.objectives.base import Objective
from cmdist.core.objectives.lagrangian import Lagrangian
from cmdist.core.objectives.mean_flow import MeanFlow
from cmdist.core.preconditioning import Scalings
from cmdist.kinds.distances import DISTANCES, L2, Lpips
from cmdist.kinds.kind import Kind, Parts, edm, told
from cmdist.sections import Finite, Noise, OneOf, PositiveFloat, Section, identity

Part = Annotated[float, Field(ge=0, le=1)]


class SortedLevels(Section):
    """Two draws of one law, sorted (MeanFlow)."""

    kind: Annotated[Literal["sorted"], identity("how sigma and sigma_next are drawn")]
    mean: Annotated[Finite, identity("of ln sigma, truncated to the noise levels")] = -0.4
    std: Annotated[PositiveFloat, identity("of ln sigma")] = 1.0
    matching: Annotated[Part, identity("part of a micro-batch where both are equal: flow matching")] = 0.75


class ClippedLevels(Section):
    """A draw of each of two laws, the second at most the first (MeanFlow's code for CIFAR-10)."""

    kind: Annotated[Literal["clipped"], identity("how sigma and sigma_next are drawn")]
    mean: Annotated[Finite, identity("of ln sigma, truncated to the noise levels")] = -0.6
    std: Annotated[PositiveFloat, identity("of ln sigma")] = 1.6
    mean_next: Annotated[Finite, identity("of ln sigma_next")] = -4.0
    std_next: Annotated[PositiveFloat, identity("of ln sigma_next")] = 1.6
    matching: Annotated[Part, identity("how likely both are equal, before the second is clipped")] = 0.25


LEVELS: dict[str, type[Section]] = {"sorted": SortedLevels, "clipped": ClippedLevels}


class LagrangianDistillation(Section):
    """Lagrangian self-distillation of a flow map."""

    kind: Annotated[Literal["lagrangian"], identity("what is learned")]
    levels: Annotated[Section, OneOf(LEVELS, "sorted")] = SortedLevels(kind="sorted")
    power: Annotated[Part, identity("p of the weight 1 / (S + c)^p")] = 0.0
    c: Annotated[PositiveFloat, identity("c of that")] = 0.01
    prediction: Annotated[
        Literal["edm", "velocity", "image"],
        identity("what the network's output is: EDM's mixture, the velocity (MeanFlow), the image (pixel MeanFlow)"),
    ] = "edm"


class MeanFlows(LagrangianDistillation):
    """MeanFlow."""

    kind: Annotated[Literal["mean_flow"], identity("what is learned")]  # type: ignore[assignment]
    power: Annotated[Part, identity("p of the weight 1 / (S + c)^p")] = 1.0
    distance: Annotated[Section, OneOf(DISTANCES, "l2")] = L2(kind="l2")
    lpips_weight: Annotated[PositiveFloat, identity("of distance lpips, beside the velocity's squared error")] = 0.4
    lpips_below: Annotated[PositiveFloat, identity("the highest sigma that it counts at; 4: a = 0.8")] = 4.0

    @model_validator(mode="after")
    def _added(self) -> "MeanFlows":
        if not isinstance(self.distance, L2 | Lpips):
            raise ValueError(
                f"distance kind {self.distance.kind}: l2 is the velocity's squared error alone, "  # type: ignore[attr-defined]
                "and lpips is added to it; no other is allowed"
            )
        return self


class ImprovedMeanFlow(MeanFlows):
    """Improved MeanFlow."""

    kind: Annotated[Literal["improved_mean_flow"], identity("what is learned")]  # type: ignore[assignment]
    levels: Annotated[Section, OneOf(LEVELS, "sorted")] = SortedLevels(kind="sorted", matching=0.5)


def _levels(keys: Section, n: Noise) -> mean_flow.Levels:
    law = partial(mean_flow.lognormal, low=n.sigma_min, high=n.sigma_max)
    if isinstance(keys, ClippedLevels):
        laws = law(keys.mean, keys.std), law(keys.mean_next, keys.std_next)
        return lambda count, generator: mean_flow.clipped_levels(count, generator, *laws, keys.matching)
    assert isinstance(keys, SortedLevels)
    one = law(keys.mean, keys.std)
    return lambda count, generator: mean_flow.sorted_levels(count, generator, one, keys.matching)


def _mean_flow(keys: MeanFlows, parts: Parts) -> Objective:
    seen = None
    if isinstance(keys.distance, Lpips):
        seen = mean_flow.Perceptual(parts.distance(keys.distance), keys.lpips_weight, keys.lpips_below)
    improved = isinstance(keys, ImprovedMeanFlow)
    return MeanFlow(improved, _levels(keys.levels, parts.noise), keys.power, keys.c, seen)


def _lagrangian(keys: LagrangianDistillation, parts: Parts) -> Objective:
    return Lagrangian(_levels(keys.levels, parts.noise), keys.power, keys.c)


def _predicted(keys: Any, n: Noise) -> Callable[[Tensor], Scalings]:
    if keys.prediction == "edm":
        return edm(keys, n)
    return preconditioning.flow_scalings(image=keys.prediction == "image", c_noise=told(n))


ROWS: dict[str, Kind] = {
    "mean_flow": Kind(MeanFlows, _mean_flow, _predicted, "jump", second=True),
    "improved_mean_flow": Kind(ImprovedMeanFlow, _mean_flow, _predicted, "jump", second=True),
    "lagrangian": Kind(LagrangianDistillation, _lagrangian, _predicted, "jump", second=True, through=lambda keys: True),
}
