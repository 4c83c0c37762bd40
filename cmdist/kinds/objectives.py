"""The kinds of objective: the keys of each, how it is made, what it makes and what it needs.

A new one is a file of core/objectives/ and a row here; nothing else asks for an objective's name.
"""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from cmdist.core import augmentation, noise, solvers
from cmdist.core.objectives import denoising as core_denoising
from cmdist.core.objectives.base import Objective
from cmdist.core.objectives.consistency import Consistency
from cmdist.kinds import continuous, discrete, mean_flows
from cmdist.kinds.distances import CURRICULA, DISTANCES, L2, Constant, curriculum, has_target
from cmdist.kinds.guided import Followed
from cmdist.kinds.kind import Kind, Parts, bounded, edm
from cmdist.sections import Finite, OneOf, Section, Spread, identity


class Denoising(Section):
    """The teacher's objective (EDM)."""

    kind: Annotated[Literal["denoising"], identity("what is learned")]
    sigma_mean: Annotated[Finite, identity("of ln sigma")] = -1.2
    sigma_std: Annotated[Spread, identity("of ln sigma")] = 1.2
    augment: Annotated[
        float,
        Field(ge=0, le=1),
        identity("EDM's augmentation: the probability of each change, of which network.augment_dim 9 is told; 0: none"),
    ] = 0.0


class UniformIndex(Section):
    """Every pair of neighbours is as likely as any other."""

    kind: Annotated[Literal["uniform"], identity("which pair of the grid is drawn")]


class LognormalIndex(Section):
    """Pairs by the log-normal law of improved CT."""

    kind: Annotated[Literal["lognormal"], identity("which pair of the grid is drawn")]
    mean: Annotated[Finite, identity("of ln sigma")] = -1.1
    std: Annotated[Spread, identity("of ln sigma")] = 2.0


INDICES: dict[str, type[Section]] = {"uniform": UniformIndex, "lognormal": LognormalIndex}


class ConsistencyTraining(Section):
    """Consistency training (Algorithm 3); improved CT with other keys."""

    kind: Annotated[Literal["consistency_training"], identity("what is learned")]
    distance: Annotated[Section, OneOf(DISTANCES, "l2")] = L2(kind="l2")
    weighting: Annotated[Literal["uniform", "inverse_gap"], identity("lambda")] = "uniform"
    index: Annotated[Section, OneOf(INDICES, "uniform")] = UniformIndex(kind="uniform")
    curriculum: Annotated[Section, OneOf(CURRICULA, "constant")] = Constant(kind="constant")


class ConsistencyDistillation(Followed, ConsistencyTraining):
    """Consistency distillation (Algorithm 2)."""

    kind: Annotated[Literal["consistency_distillation"], identity("what is learned")]  # type: ignore[assignment]
    solver: Annotated[Literal["euler", "heun"], identity("the teacher's step")] = "heun"


SOLVERS = {"euler": solvers.euler_step, "heun": solvers.heun_step}
WEIGHTINGS = {"uniform": noise.uniform, "inverse_gap": noise.inverse_gap}


def _denoising(keys: Denoising, parts: Parts) -> Objective:
    return core_denoising.Denoising(keys.sigma_mean, keys.sigma_std, parts.noise.sigma_data, keys.augment)


def _told(config: Any) -> str | None:
    if config.objective.augment and getattr(config.network, "augment_dim", 0) != augmentation.TOLD:
        return "objective.augment tells the network how images were changed: it needs network.augment_dim 9"
    return None


def _consistency(keys: ConsistencyTraining, parts: Parts) -> Objective:
    n, index = parts.noise, keys.index
    return Consistency(
        curriculum=curriculum(keys.curriculum, parts.steps),
        grid=partial(noise.karras_sigmas, sigma_min=n.sigma_min, sigma_max=n.sigma_max, rho=n.rho),
        index_draw=(
            partial(noise.lognormal_index, mean=index.mean, std=index.std)
            if isinstance(index, LognormalIndex)
            else noise.uniform_index
        ),
        distance=parts.distance(keys.distance),
        weighting=WEIGHTINGS[keys.weighting],
        solver_step=SOLVERS[keys.solver] if isinstance(keys, ConsistencyDistillation) else None,
    )


def _has_target(keys: ConsistencyTraining) -> bool:
    return has_target(keys.curriculum)


OBJECTIVES: dict[str, Kind] = {
    "denoising": Kind(Denoising, _denoising, edm, "denoiser", check=_told),
    "consistency_distillation": Kind(ConsistencyDistillation, _consistency, bounded, "consistency", target=_has_target),
    "consistency_training": Kind(ConsistencyTraining, _consistency, bounded, "consistency", target=_has_target),
    **discrete.ROWS,
    **continuous.ROWS,
    **mean_flows.ROWS,
}
