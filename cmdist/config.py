"""The typed, frozen schema of a run: a YAML file plus dotted overrides (`train.steps=100`). Read by build, pipelines
and cluster only.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cmdist.errors import CmdistError, ConfigError
from cmdist.system import storage

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of keys; unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Section):
    """Where the run lives: its folder is `root/name`."""

    root: str = "runs"  # any fsspec URL
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0


class Data(Section):
    """A prepared data set (pipelines/prepare_data.py); size, channels and classes must be those of its index."""

    url: str
    image_size: Positive
    channels: Literal[1, 3] = 3
    classes: Annotated[int, Field(ge=0)] = 0  # 0: labels are not used
    flip: bool = False  # random horizontal flips
    block_shards: Positive = 8  # samples are shuffled inside blocks of this many shards
    workers: Annotated[int, Field(ge=0)] = 2  # reading processes of each rank; 0: one thread
    cache: str | None = None  # local folder for shards of a remote store
    cache_gib: PositiveFloat | None = None  # how much of them is kept; the least recently used go first
    bad_samples: Annotated[int, Field(ge=0)] = 0  # how many unreadable images may be replaced in an attempt


class Network(Section):
    """The ADM U-Net (Dhariwal & Nichol 2021), in the terms of the released models."""

    model_channels: Annotated[int, Field(ge=1, le=65536)]
    channel_mult: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)]
    num_res_blocks: Annotated[int, Field(ge=1, le=100)]
    attention_resolutions: tuple[Positive, ...] = ()  # in pixels
    head_channels: Positive = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    checkpoint_activations: bool = False
    channels_last: bool = False  # memory format of the activations


class Noise(Section):
    """The range of noise levels and the Karras grid (paper, section 3)."""

    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    sigma_data: PositiveFloat = 0.5
    rho: PositiveFloat = 7.0


class Loss(Section):
    """What is compared, how it is weighted, and at which noise levels."""

    distance: Literal["l1", "l2", "pseudo_huber", "lpips"] = "l2"
    lpips_weights: str | None = None  # local file with VGG16's weights; nothing is downloaded
    lpips_pooling: Literal["avg", "max"] = "avg"  # avg: the paper's ImageNet and LSUN runs; max: its CIFAR-10 runs
    huber_c: PositiveFloat | None = None  # None: 0.00054 sqrt(D), improved CT
    weighting: Literal["uniform", "inverse_gap"] = "uniform"
    index: Literal["uniform", "lognormal"] = "uniform"  # which pair (sigma, sigma_next) of the grid is drawn
    index_mean: float = -1.1  # of ln sigma, for the log-normal draw
    index_std: PositiveFloat = 2.0
    sigma_mean: float = -1.2  # of ln sigma, denoising objective
    sigma_std: PositiveFloat = 1.2
    solver: Literal["euler", "heun"] = "heun"  # the teacher's step, distillation only


class Curriculum(Section):
    """N(k) and mu(k)."""

    kind: Literal["constant", "paper", "doubling"] = "constant"
    n_timesteps: Annotated[int, Field(ge=2)] = 18  # constant
    mu: Decay = 0.0  # constant
    s0: Annotated[int, Field(ge=1)] = 2  # paper, doubling
    s1: Annotated[int, Field(ge=1)] = 150  # paper, doubling
    mu0: Annotated[float, Field(gt=0, lt=1)] = 0.9  # paper
    mu_form: Literal["paper", "code"] = "paper"


class Optimizer(Section):
    """RAdam as in the paper, or Adam; the learning rate is a function of the step."""

    kind: Literal["radam", "adam"] = "radam"
    lr: PositiveFloat
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # the last part of the run in which lr falls linearly to 0
    )
    clip: Annotated[float, Field(ge=0)] = 0.0  # gradient norm; 0: no clipping


class Train(Section):
    """The size of a step and how it is computed; `micro_batch` is the unit of identity, so both batches belong to the
    run.
    """

    steps: Positive
    global_batch: Positive
    micro_batch: Positive  # of the run's identity: ask --plan or pipelines/benchmark.py train before the first start
    zero_stage: Literal[0, 1, 2] = 1
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # inside the network; everything else is fp32
    # fp16: the first one; halved at an overflow, doubled after 1,000 steps without one
    loss_scale: Annotated[float, Field(gt=0, le=2.0**32)] = 65536.0
    ema: Annotated[tuple[Decay, ...], Field(min_length=1)] = (0.9999,)
    log_every: Positive = 50
    checkpoint_every: Positive = 1000
    keep_checkpoints: Annotated[int, Field(ge=0)] = (
        3  # the newest so many; 0: all; of evaluated steps the averages stay anyway
    )
    keep_every: Annotated[int, Field(ge=0)] = 0  # and all steps divisible by this; 0: none
    max_missed_checkpoints: Annotated[int, Field(ge=0)] = 3  # saves in a row that may fail before the run does
    hang_minutes: PositiveFloat = 30.0  # a rank that finishes no step for so long prints its stacks and ends the run
    glance_every: Annotated[int, Field(ge=0)] = (
        0  # 0: none; else at the first commit past each multiple, whose averages stay
    )
    glance_images: Positive = 2000  # of a glance (pipelines/glance.py)
    glance_device: Annotated[str, Field(pattern=r"^(cpu|\d+)$")] = (
        "cpu"  # or the number of a GPU of rank 0's node, shared with its rank
    )
    self_check: bool = True
    compile: bool = False  # torch.compile, for every network of the step
    deterministic: bool = (
        False  # on GPUs only kernels that repeat every bit: slower; an operation that has none ends the run
    )


class Sampling(Section):
    """What evaluation does unless told otherwise."""

    times: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)] = (80.0, 0.8)  # multistep, the first is sigma_max
    ode_steps: Annotated[int, Field(ge=2)] = 18  # Heun steps of a denoiser


class Evaluation(Section):
    """Files of evaluation; nothing is downloaded. The command line's go first."""

    inception: str | None = None  # TorchScript weights, for fid, kid, fid_legacy, is, precision and recall
    dinov2: str | None = None  # TorchScript, for fd_dinov2
    references: dict[
        str, str
    ] = {}  # statistics of real images by space, e.g. fid_legacy; else they are made from the data set


class Tracking(Section):
    """MLflow; without a URI: MLFLOW_TRACKING_URI, else SQLite below run.root; 'none': nothing is tracked."""

    uri: str | None = None
    experiment: str = "cmdist"


class Config(Section):
    """One run.

    `teacher` and `init` name a run folder (its newest checkpoint), a checkpoint folder, or a file of released weights
    (.pt, .pth, .safetensors); `teacher: exact` is the data's closed form. A file as teacher is a denoiser (edm_*) with
    this run's `network.*`.
    """

    objective: Literal["denoising", "consistency_distillation", "consistency_training"]
    run: Run
    data: Data
    network: Network
    noise: Noise = Noise()
    loss: Loss = Loss()
    curriculum: Curriculum = Curriculum()
    optimizer: Optimizer
    train: Train
    teacher: str | None = None
    init: str | None = None  # None: random; 'teacher': the teacher's weights
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        noise, train, depth = self.noise, self.train, len(self.network.channel_mult)
        if noise.sigma_min >= noise.sigma_max:
            raise ValueError(f"noise.sigma_min ({noise.sigma_min}) must be below noise.sigma_max ({noise.sigma_max})")
        if train.global_batch % train.micro_batch:
            raise ValueError(
                f"train.global_batch ({train.global_batch}) must be a multiple of train.micro_batch "
                f"({train.micro_batch})"
            )
        if len(set(train.ema)) != len(train.ema):
            raise ValueError(f"train.ema {list(train.ema)} names a decay twice; each may stand once")
        if train.compile and self.network.checkpoint_activations and self.network.dropout:
            raise ValueError(
                "train.compile with network.checkpoint_activations needs network.dropout 0: "
                "compiled checkpointing draws its masks in another order, so student and target would not share them"
            )
        if self.data.image_size % 2 ** (depth - 1):
            size, unit = self.data.image_size, 2 ** (depth - 1)
            raise ValueError(
                f"data.image_size ({size}) must be divisible by {unit} for network.channel_mult of length {depth}"
            )
        if self.objective == "consistency_distillation" and self.teacher is None:
            raise ValueError(
                "objective consistency_distillation needs teacher: a run folder, a checkpoint folder, a file of "
                "weights or 'exact'"
            )
        if self.loss.distance == "lpips" and self.loss.lpips_weights is None:
            raise ValueError(
                "loss.distance lpips needs loss.lpips_weights: a local copy of https://download.pytorch.org/models/vgg16-397923af.pth"
            )
        if self.init == "teacher" and self.teacher in (None, "exact"):
            raise ValueError("init: teacher needs teacher to be a run folder, a checkpoint folder or a file of weights")
        if self.curriculum.kind == "paper" and self.curriculum.s0 < 2:
            raise ValueError("curriculum.s0 must be 2 or more for kind paper: a grid has at least two noise levels")
        if self.curriculum.kind != "constant" and self.curriculum.s0 > self.curriculum.s1:
            raise ValueError(
                f"curriculum.s0 ({self.curriculum.s0}) must not exceed curriculum.s1 ({self.curriculum.s1})"
            )
        times, top, bottom = self.sampling.times, noise.sigma_max, noise.sigma_min
        if times[0] != top or any(a <= b for a, b in zip(times, times[1:], strict=False)) or times[-1] <= bottom:
            raise ValueError(
                f"sampling.times {list(times)} must fall from noise.sigma_max ({top}) and "
                f"stay above noise.sigma_min ({bottom})"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """M, micro-batches of an optimizer step over all ranks."""
        return self.train.global_batch // self.train.micro_batch


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `dotted.key=value` overrides. Raises ConfigError with one sentence that names the
    key.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror}") from error
    return parse(text, overrides, where=str(path))


def parse(text: str, overrides: Sequence[str] = (), where: str = "config") -> Config:
    """As `load`, from text."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must hold keys and values, as configs/digits/ct.yaml does")
    for override in overrides:
        _override(tree, override)
    _refuse_secrets(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from error


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `parse` gives it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat(config: Config) -> dict[str, Any]:
    """{'train.steps': 100, ...}: one entry for each leaf."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {
            k: v
            for name, child in value.items()
            for k, v in walk(f"{prefix}.{name}" if prefix else name, child).items()
        }

    return walk("", config.model_dump(mode="json"))


def _override(tree: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override '{override}' must read key=value, e.g. train.steps=100")
    *path, leaf = name.split(".")
    node = tree
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override '{override}': '{part}' is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML") from error


def _refuse_secrets(value: Any, key: str = "") -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _refuse_secrets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str):
        try:
            storage.check_url(value)
        except CmdistError as error:
            raise ConfigError(f"{key} = {error}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = _fields(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{key}'; {hint}allowed here: {', '.join(allowed)}{more}"
    if first["type"] == "missing":
        return f"key '{key}' is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    return (
        f"{message}{more}" if not key else f"key '{key}' = {first['input']!r}: {message[0].lower()}{message[1:]}{more}"
    )


def _fields(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in path:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)
