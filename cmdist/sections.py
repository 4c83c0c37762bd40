"""The schema of a run's configuration. Each key says beside it what it is, and whether it may change while the run goes
on: docs/keys.md is made from that, and so is the comparison of a run with the checkpoint that it goes on from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import core_schema

from cmdist.evaluation.metrics.table import METRICS

MOST = 2**40  # of steps, images, and what else is counted
Natural = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(gt=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
Finite = Annotated[float, Field(ge=-80, le=80)]  # a logarithm; e to that is about what fp32 has
Spread = Annotated[float, Field(gt=0, le=20)]  # a standard deviation of logarithms
Decay = Annotated[float, Field(ge=0, lt=1)]
Average = Annotated[float, Field(ge=0, le=1e12)]
Kind = Literal["identity", "content", "warned", "free", "place"]


@dataclass(frozen=True)
class Mark:
    """What a key is, and whether it may change between two starts of a run."""

    kind: Kind
    what: str


def identity(what: str) -> Mark:
    """A key that changes what is learned: it may not change."""
    return Mark("identity", what)


def content(what: str) -> Mark:
    """A name of what changes what is learned: its content may not change, but it may move."""
    return Mark("content", what)


def warned(what: str) -> Mark:
    """A key that may change, with a warning: the numbers change, not what is learned."""
    return Mark("warned", what)


def free(what: str) -> Mark:
    """A key that may change."""
    return Mark("free", what)


def place(what: str) -> Mark:
    """A key that says where things are: it may change, and for older checkpoints too today's is right."""
    return Mark("place", what)


class Section(BaseModel):
    """A group of keys; unknown keys, silent conversions (true for 1, '64' for 64), infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _with_tuples(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


@dataclass(frozen=True)
class OneOf:
    """The mark of a section of several kinds: its key `kind` says which of the table's sections the others belong to.

    The table is looked at when a configuration is read. `section` gives what the table's rows have of keys.
    """

    table: Mapping[str, Any]
    default: str | None = None  # the kind of a section that says none

    def section(self, kind: str) -> type[Section]:
        """The keys of a kind."""
        row = self.table[kind]
        return row if isinstance(row, type) else row.section  # type: ignore[no-any-return]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """How pydantic reads and writes it."""
        written = core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(self._read, serialization=written)

    def _read(self, value: Any) -> Section:
        if isinstance(value, Section):
            return value
        kinds = ", ".join(self.table)
        if not isinstance(value, dict):
            raise ValueError(f"a section with the key kind is needed, e.g. {{kind: {next(iter(self.table))}}}")
        kind = value.get("kind", self.default)
        if kind is None:
            raise ValueError(f"kind is missing; allowed: {kinds}")
        if not isinstance(kind, str) or kind not in self.table:
            raise ValueError(f"kind {kind!r} is unknown; allowed: {kinds}")
        return self.section(kind).model_validate(value | {"kind": kind})


class Run(Section):
    """Where the run lives: its folder is `root/name`."""

    root: Annotated[str, place("any fsspec URL")] = "runs"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), place("the folder is root/name")]
    seed: Annotated[int, Field(ge=0, lt=2**63), identity("everything random comes from it")] = 0

    @field_validator("root")
    @classmethod
    def _stays(cls, root: str) -> str:
        if root.startswith("memory:"):
            raise ValueError("memory ends with this process, and the run with it; give a path or a URL of a store")
        return root


class Data(Section):
    """A prepared data set (pipelines/prepare_data.py); size, channels and classes must be those of its index."""

    url: Annotated[str, content("a prepared data set, compared by the hash of its index")]
    image_size: Annotated[int, Field(gt=0, le=2**14), identity("pixels a side, as in the index")]
    channels: Annotated[int, Field(gt=0, le=1024), identity("as in the index")] = 3
    classes: Annotated[int, Field(ge=0, le=1_000_000), identity("number of labels; 0: they are not used")] = 0
    flip: Annotated[bool, identity("random horizontal flips")] = False
    block_shards: Annotated[
        int, Field(gt=0, le=2**20), identity("samples are shuffled inside blocks of this many shards")
    ] = 8
    workers: Annotated[int, Field(ge=0, le=1024), free("reading processes of each rank; 0: one thread")] = 2
    cache: Annotated[str | None, place("local folder for shards of a remote store")] = None
    cache_gib: Annotated[PositiveFloat | None, place("GiB of the cache; the least recently used go first")] = None
    bad_samples: Annotated[Natural, free("how many unreadable images may be replaced in an attempt")] = 0


class Noise(Section):
    """The range of noise levels and the Karras grid (paper, section 3)."""

    sigma_min: Annotated[float, Field(ge=1e-6, le=1e6), identity("the lowest noise level")] = 0.002
    sigma_max: Annotated[float, Field(ge=1e-6, le=1e6), identity("the highest noise level")] = 80.0
    sigma_data: Annotated[float, Field(ge=1e-6, le=1e6), identity("standard deviation of the data")] = 0.5
    rho: Annotated[float, Field(ge=0.01, le=1000), identity("curvature of the grid")] = 7.0
    c_noise: Annotated[
        Literal["log", "angle"],
        identity("what a network is told of sigma: ln(sigma)/4, as EDM's, or arctan(sigma/sigma_data), TrigFlow's"),
    ] = "log"


class Optimizer(Section):
    """RAdam as in the paper, or Adam; the learning rate is a function of the step."""

    kind: Annotated[Literal["radam", "adam"], identity("RAdam as in the paper, or Adam")] = "radam"
    lr: Annotated[float, Field(gt=0, le=1000), free("learning rate")]
    betas: Annotated[tuple[Decay, Decay], warned("decays of the moments")] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1), warned("of the denominator")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=1000), warned("times the weights, added to the gradient")] = 0.0
    warmup_steps: Annotated[Natural, free("in which lr rises linearly")] = 0
    decay_fraction: Annotated[
        float, Field(ge=0, le=1), free("the last part of the run in which lr falls linearly to 0")
    ] = 0.0
    decay_end: Annotated[
        Positive | None,
        free(
            "the step from which on lr is 0, unless decay_fraction is; "
            "null: train.steps at the first start, from then on fixed"
        ),
    ] = None
    clip: Annotated[float, Field(ge=0, le=1e9), free("the largest norm of the gradient; 0: no clipping")] = 0.0


class Train(Section):
    """The size of a step and how it is computed;
    `micro_batch` is the unit of identity, so both batches belong to the run.
    """

    steps: Annotated[Positive, free("when the run is finished")]
    global_batch: Annotated[int, Field(gt=0, le=2**24), identity("images of a step")]
    micro_batch: Annotated[
        int,
        Field(gt=0, le=2**20),
        identity(
            "images that are computed together: ask --plan or pipelines/benchmark.py train before the first start"
        ),
    ]
    label_dropout: Annotated[
        float, Field(ge=0, lt=1), identity("the share of labels that become that of no class, with network.null_label")
    ] = 0.0
    zero_stage: Annotated[Literal[0, 1, 2], free("what the ranks share out, of DeepSpeed")] = 1
    precision: Annotated[Literal["fp32", "bf16", "fp16"], warned("inside the network; everything else is fp32")] = (
        "bf16"
    )
    loss_scale: Annotated[
        float,
        Field(ge=2.0**-32, le=2.0**32),
        free("fp16: the first one; halved at an overflow, doubled after 1,000 steps without one"),
    ] = 65536.0
    ema: Annotated[
        tuple[Average, ...],
        Field(min_length=1, max_length=100),
        identity("the averages: below 1 a decay, from 1 on a half-life in images"),
    ] = (0.9999,)
    ema_ramp_up: Annotated[
        Annotated[float, Field(gt=0, le=1000)] | None,
        identity("a half-life is at most so many times the images that were seen before (EDM: 0.05); null: never less"),
    ] = None
    log_every: Annotated[Positive, free("steps between two points of the curves")] = 50
    checkpoint_every: Annotated[Positive, free("steps between two checkpoints")] = 1000
    keep_checkpoints: Annotated[
        Natural, free("how many of the newest stay whole; 0: all; of evaluated steps the averages stay anyway")
    ] = 3
    keep_every: Annotated[Natural, free("whole checkpoints of steps divisible by this stay too; 0: none")] = 0
    max_missed_checkpoints: Annotated[Natural, free("saves in a row that may fail before the run does")] = 3
    hang_minutes: Annotated[
        float,
        Field(gt=0, le=60 * 24 * 30),
        free("a rank that finishes no step for so long prints its stacks and ends the run"),
    ] = 30.0
    glance_every: Annotated[
        Natural, free("a glance at the first commit past each multiple, whose averages stay; 0: none")
    ] = 0
    glance_images: Annotated[int, Field(gt=0, le=10_000_000), free("images of a glance (pipelines/glance.py)")] = 2000
    glance_device: Annotated[
        str, Field(pattern=r"^(cpu|\d+)$"), free("cpu, or the number of a GPU of rank 0's node, shared with its rank")
    ] = "cpu"
    self_check: Annotated[bool, free("compares the engine with autograd before the first step")] = True
    compile: Annotated[bool, free("torch.compile, for every network of the step")] = False
    deterministic: Annotated[
        bool, free("on GPUs only kernels that repeat every bit: slower; an operation that has none ends the run")
    ] = False


class Sampling(Section):
    """What evaluation does unless told otherwise."""

    times: Annotated[
        tuple[PositiveFloat, ...],
        Field(min_length=2, max_length=1000),
        free("of the multistep sampler, the first is sigma_max"),
    ] = (
        80.0,
        0.8,
    )
    ode_steps: Annotated[int, Field(ge=2, le=100_000), free("Heun steps of a denoiser")] = 18


class Evaluation(Section):
    """Files of evaluation; nothing is downloaded. The command line's go first."""

    inception: Annotated[
        str | None, place("TorchScript weights, for fid, kid, fid_legacy, is, precision and recall")
    ] = None
    dinov2: Annotated[str | None, place("TorchScript, for fd_dinov2")] = None
    trusted: Annotated[tuple[str, ...], place("checksums (sha256:...) of the TorchScript files that may run")] = ()
    references: Annotated[
        dict[str, str],
        place("statistics of real images by space, e.g. fid_legacy; else they are made from the data set"),
    ] = {}

    @field_validator("trusted")
    @classmethod
    def _checksums(cls, trusted: tuple[str, ...]) -> tuple[str, ...]:
        if strange := [text for text in trusted if not re.fullmatch("sha256:[0-9a-f]{64}", text)]:
            raise ValueError(f"{strange[0]} is no checksum: sha256: and 64 digits of 0 to f are allowed")
        return trusted

    @field_validator("references")
    @classmethod
    def _of_spaces(cls, references: dict[str, str]) -> dict[str, str]:
        spaces = dict.fromkeys(metric.space for metric in METRICS.values())
        if strange := [space for space in references if space not in spaces]:
            raise ValueError(f"the space {strange[0]} is unknown; allowed: {', '.join(spaces)}")
        return references


class Tracking(Section):
    """MLflow; without a URI: MLFLOW_TRACKING_URI, else SQLite below run.root; 'none': nothing is tracked."""

    uri: Annotated[
        str | None, place("without one: MLFLOW_TRACKING_URI, else SQLite below run.root; 'none': nothing is tracked")
    ] = None
    experiment: Annotated[str, place("of MLflow")] = "cmdist"
