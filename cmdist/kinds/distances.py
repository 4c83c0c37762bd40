"""The kinds of distance between images, and of the curriculum of a consistency model: the keys of each."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cmdist.core import curricula, distances
from cmdist.sections import Decay, Positive, Section, content, identity, warned

MOST_TIMES = 2**20  # noise levels of a grid, which is held in memory


class L1(Section):
    """The mean absolute difference of the pixels."""

    kind: Annotated[Literal["l1"], identity("d(x, y)")]


class L2(Section):
    """The mean squared difference of the pixels."""

    kind: Annotated[Literal["l2"], identity("d(x, y)")]


class PseudoHuber(Section):
    """sqrt(|x - y|^2 + c^2) - c (improved CT)."""

    kind: Annotated[Literal["pseudo_huber"], identity("d(x, y)")]
    c: Annotated[Annotated[float, Field(gt=0, le=1e4)] | None, identity("null: 0.00054 sqrt(D), improved CT")] = None


class Lpips(Section):
    """LPIPS of VGG16."""

    kind: Annotated[Literal["lpips"], identity("d(x, y)")]
    weights: Annotated[str, content("local file with VGG16's weights; nothing is downloaded")]
    pooling: Annotated[Literal["avg", "max"], identity("avg: the paper's ImageNet and LSUN runs; max: CIFAR-10")] = (
        "avg"
    )
    precision: Annotated[
        Literal["fp32", "bf16"], warned("of VGG's convolutions; bf16: their channels last in memory, too")
    ] = "fp32"


class Features(Section):
    """LPIPS without learned weights, through the classifier that lies beside a data set of small images."""

    kind: Annotated[Literal["features"], identity("d(x, y)")]
    extractor: Annotated[
        str | None, content("the data set whose classifier is looked through; null: the run's own")
    ] = None


DISTANCES: dict[str, type[Section]] = {
    "l1": L1,
    "l2": L2,
    "pseudo_huber": PseudoHuber,
    "lpips": Lpips,
    "features": Features,
}


def plain(keys: Section, shape: Sequence[int]) -> distances.Distance:
    """A distance that needs no network, for images of shape (C, H, W)."""
    if isinstance(keys, PseudoHuber):
        return distances.pseudo_huber(keys.c or distances.huber_c(shape))
    assert not isinstance(keys, Lpips | Features), "these have weights, which build.py loads"
    return distances.l1 if isinstance(keys, L1) else distances.l2


class Constant(Section):
    """The same N and mu at every step."""

    kind: Annotated[Literal["constant"], identity("how N and mu follow from the step")]
    n_timesteps: Annotated[int, Field(ge=2, le=MOST_TIMES), identity("N")] = 18
    mu: Annotated[Decay, identity("the target's decay; 0: the student is the target")] = 0.0


class Paper(Section):
    """The paper's schedule of consistency training (appendix C)."""

    kind: Annotated[Literal["paper"], identity("how N and mu follow from the step")]
    s0: Annotated[int, Field(ge=2, le=MOST_TIMES), identity("the first N: a grid has at least two noise levels")] = 2
    s1: Annotated[int, Field(ge=1, le=MOST_TIMES), identity("the last N")] = 150
    mu0: Annotated[float, Field(gt=0, lt=1), identity("mu at the first N")] = 0.9
    mu_form: Annotated[Literal["paper", "code"], identity("the exponent of the paper or of its published code")] = (
        "paper"
    )
    total_steps: Annotated[Positive | None, identity("K; null: train.steps at the first start, then fixed")] = None

    @model_validator(mode="after")
    def _rises(self) -> "Paper":
        if self.s0 > self.s1:
            raise ValueError(f"s0 ({self.s0}) must not exceed s1 ({self.s1})")
        return self


class Doubling(Section):
    """Improved CT's schedule: N - 1 doubles, and mu = 0."""

    kind: Annotated[Literal["doubling"], identity("how N and mu follow from the step")]
    s0: Annotated[int, Field(ge=1, le=MOST_TIMES), identity("the first N - 1")] = 2
    s1: Annotated[int, Field(ge=1, le=MOST_TIMES), identity("the last N - 1")] = 150
    total_steps: Annotated[Positive | None, identity("K; null: train.steps at the first start, then fixed")] = None

    @model_validator(mode="after")
    def _rises(self) -> "Doubling":
        if self.s0 > self.s1:
            raise ValueError(f"s0 ({self.s0}) must not exceed s1 ({self.s1})")
        return self


CURRICULA: dict[str, type[Section]] = {"constant": Constant, "paper": Paper, "doubling": Doubling}


def curriculum(keys: Section, steps: int) -> curricula.Curriculum:
    """N(k) and mu(k); `steps` is K where the keys leave that open."""
    if isinstance(keys, Constant):
        return curricula.Constant(keys.n_timesteps, keys.mu)
    if isinstance(keys, Paper):
        return curricula.Paper(keys.s0, keys.s1, keys.mu0, keys.total_steps or steps, keys.mu_form)
    assert isinstance(keys, Doubling)
    return curricula.Doubling(keys.s0, keys.s1, keys.total_steps or steps)


def has_target(keys: Section) -> bool:
    """Whether mu is ever above 0; without it the student itself is the target."""
    return isinstance(keys, Paper) or (isinstance(keys, Constant) and keys.mu > 0)
