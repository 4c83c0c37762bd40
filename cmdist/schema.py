"""The schema of a run's configuration. Each key says beside it what it is, and whether it may change while the run goes
on: docs/keys.md is made from that, and so is the comparison of a run with the checkpoint that it goes on from.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
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
    """A group of keys; unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Section):
    """Where the run lives: its folder is `root/name`."""

    root: Annotated[str, place("any fsspec URL")] = "runs"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), place("the folder is root/name")]
    seed: Annotated[int, Field(ge=0), identity("everything random comes from it")] = 0


class Data(Section):
    """A prepared data set (pipelines/prepare_data.py); size, channels and classes must be those of its index."""

    url: Annotated[str, content("a prepared data set, compared by the hash of its index")]
    image_size: Annotated[Positive, identity("pixels a side, as in the index")]
    channels: Annotated[Literal[1, 3], identity("as in the index")] = 3
    classes: Annotated[int, Field(ge=0), identity("number of labels; 0: they are not used")] = 0
    flip: Annotated[bool, identity("random horizontal flips")] = False
    block_shards: Annotated[Positive, identity("samples are shuffled inside blocks of this many shards")] = 8
    workers: Annotated[int, Field(ge=0), free("reading processes of each rank; 0: one thread")] = 2
    cache: Annotated[str | None, place("local folder for shards of a remote store")] = None
    cache_gib: Annotated[PositiveFloat | None, place("GiB of the cache; the least recently used go first")] = None
    bad_samples: Annotated[int, Field(ge=0), free("how many unreadable images may be replaced in an attempt")] = 0


class Network(Section):
    """The ADM U-Net (Dhariwal & Nichol 2021), in the terms of the released models."""

    model_channels: Annotated[int, Field(ge=1, le=65536), identity("channels of the first level")]
    channel_mult: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...],
        Field(min_length=1),
        identity("channels of each level, in model_channels"),
    ]
    num_res_blocks: Annotated[int, Field(ge=1, le=100), identity("residual blocks of each level")]
    attention_resolutions: Annotated[tuple[Positive, ...], identity("where attention is, in pixels a side")] = ()
    head_channels: Annotated[Positive, identity("of an attention head")] = 64
    dropout: Annotated[float, Field(ge=0, lt=1), identity("in the residual blocks")] = 0.0
    scale_shift_norm: Annotated[bool, identity("the embedding scales and shifts normalised features")] = True
    resblock_updown: Annotated[bool, identity("residual blocks change the resolution")] = True
    checkpoint_activations: Annotated[bool, free("computed again in the backward pass: less memory, slower")] = False
    channels_last: Annotated[bool, free("memory format of the activations")] = False


class Noise(Section):
    """The range of noise levels and the Karras grid (paper, section 3)."""

    sigma_min: Annotated[PositiveFloat, identity("the lowest noise level")] = 0.002
    sigma_max: Annotated[PositiveFloat, identity("the highest noise level")] = 80.0
    sigma_data: Annotated[PositiveFloat, identity("standard deviation of the data")] = 0.5
    rho: Annotated[PositiveFloat, identity("curvature of the grid")] = 7.0


class Loss(Section):
    """What is compared, how it is weighted, and at which noise levels."""

    distance: Annotated[Literal["l1", "l2", "pseudo_huber", "lpips"], identity("d(x, y)")] = "l2"
    lpips_weights: Annotated[str | None, content("local file with VGG16's weights; nothing is downloaded")] = None
    lpips_pooling: Annotated[
        Literal["avg", "max"], identity("avg: the paper's ImageNet and LSUN runs; max: its CIFAR-10 runs")
    ] = "avg"
    lpips_precision: Annotated[
        Literal["fp32", "bf16"], warned("of VGG's convolutions; bf16: their channels last in memory, too")
    ] = "fp32"
    huber_c: Annotated[PositiveFloat | None, identity("null: 0.00054 sqrt(D), improved CT")] = None
    weighting: Annotated[Literal["uniform", "inverse_gap"], identity("lambda")] = "uniform"
    index: Annotated[
        Literal["uniform", "lognormal"], identity("which pair (sigma, sigma_next) of the grid is drawn")
    ] = "uniform"
    index_mean: Annotated[float, identity("of ln sigma, for the log-normal draw")] = -1.1
    index_std: Annotated[PositiveFloat, identity("of ln sigma, for the log-normal draw")] = 2.0
    sigma_mean: Annotated[float, identity("of ln sigma, denoising objective")] = -1.2
    sigma_std: Annotated[PositiveFloat, identity("of ln sigma, denoising objective")] = 1.2
    solver: Annotated[Literal["euler", "heun"], identity("the teacher's step, distillation only")] = "heun"


class Curriculum(Section):
    """N(k) and mu(k)."""

    kind: Annotated[Literal["constant", "paper", "doubling"], identity("how N and mu follow from the step")] = (
        "constant"
    )
    n_timesteps: Annotated[int, Field(ge=2), identity("N, constant")] = 18
    mu: Annotated[Decay, identity("the target's decay, constant")] = 0.0
    s0: Annotated[int, Field(ge=1), identity("the first N, paper and doubling")] = 2
    s1: Annotated[int, Field(ge=1), identity("the last N, paper and doubling")] = 150
    mu0: Annotated[float, Field(gt=0, lt=1), identity("mu at the first N, paper")] = 0.9
    mu_form: Annotated[Literal["paper", "code"], identity("the exponent of the paper or of its published code")] = (
        "paper"
    )
    total_steps: Annotated[
        Positive | None,
        identity(
            "K, the steps that it takes, paper and doubling; null: train.steps at the first start, from then on fixed"
        ),
    ] = None


class Optimizer(Section):
    """RAdam as in the paper, or Adam; the learning rate is a function of the step."""

    kind: Annotated[Literal["radam", "adam"], identity("RAdam as in the paper, or Adam")] = "radam"
    lr: Annotated[PositiveFloat, free("learning rate")]
    betas: Annotated[tuple[Decay, Decay], warned("decays of the moments")] = (0.9, 0.999)
    eps: Annotated[PositiveFloat, warned("of the denominator")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0), warned("times the weights, added to the gradient")] = 0.0
    warmup_steps: Annotated[int, Field(ge=0), free("in which lr rises linearly")] = 0
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
    clip: Annotated[float, Field(ge=0), free("the largest norm of the gradient; 0: no clipping")] = 0.0


class Train(Section):
    """The size of a step and how it is computed; `micro_batch` is the unit of identity, so both batches belong to the
    run.
    """

    steps: Annotated[Positive, free("when the run is finished")]
    global_batch: Annotated[Positive, identity("images of a step")]
    micro_batch: Annotated[
        Positive,
        identity(
            "images that are computed together: ask --plan or pipelines/benchmark.py train before the first start"
        ),
    ]
    zero_stage: Annotated[Literal[0, 1, 2], free("what the ranks share out, of DeepSpeed")] = 1
    precision: Annotated[Literal["fp32", "bf16", "fp16"], warned("inside the network; everything else is fp32")] = (
        "bf16"
    )
    loss_scale: Annotated[
        float,
        Field(gt=0, le=2.0**32),
        free("fp16: the first one; halved at an overflow, doubled after 1,000 steps without one"),
    ] = 65536.0
    ema: Annotated[tuple[Decay, ...], Field(min_length=1), identity("decays of the averages")] = (0.9999,)
    log_every: Annotated[Positive, free("steps between two points of the curves")] = 50
    checkpoint_every: Annotated[Positive, free("steps between two checkpoints")] = 1000
    keep_checkpoints: Annotated[
        int, Field(ge=0), free("how many of the newest stay whole; 0: all; of evaluated steps the averages stay anyway")
    ] = 3
    keep_every: Annotated[int, Field(ge=0), free("whole checkpoints of steps divisible by this stay too; 0: none")] = 0
    max_missed_checkpoints: Annotated[int, Field(ge=0), free("saves in a row that may fail before the run does")] = 3
    hang_minutes: Annotated[
        PositiveFloat, free("a rank that finishes no step for so long prints its stacks and ends the run")
    ] = 30.0
    glance_every: Annotated[
        int, Field(ge=0), free("a glance at the first commit past each multiple, whose averages stay; 0: none")
    ] = 0
    glance_images: Annotated[Positive, free("images of a glance (pipelines/glance.py)")] = 2000
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
        tuple[PositiveFloat, ...], Field(min_length=2), free("of the multistep sampler, the first is sigma_max")
    ] = (
        80.0,
        0.8,
    )
    ode_steps: Annotated[int, Field(ge=2), free("Heun steps of a denoiser")] = 18


class Evaluation(Section):
    """Files of evaluation; nothing is downloaded. The command line's go first."""

    inception: Annotated[
        str | None, place("TorchScript weights, for fid, kid, fid_legacy, is, precision and recall")
    ] = None
    dinov2: Annotated[str | None, place("TorchScript, for fd_dinov2")] = None
    references: Annotated[
        dict[str, str],
        place("statistics of real images by space, e.g. fid_legacy; else they are made from the data set"),
    ] = {}


class Tracking(Section):
    """MLflow; without a URI: MLFLOW_TRACKING_URI, else SQLite below run.root; 'none': nothing is tracked."""

    uri: Annotated[
        str | None, place("without one: MLFLOW_TRACKING_URI, else SQLite below run.root; 'none': nothing is tracked")
    ] = None
    experiment: Annotated[str, place("of MLflow")] = "cmdist"


class Config(Section):
    """One run.

    `teacher` and `init` name a run folder (its newest checkpoint), a checkpoint folder, or a file of released weights
    (.pt, .pth, .safetensors); `teacher: exact` is the data's closed form. A file as teacher is a denoiser (edm_*) with
    this run's `network.*`.
    """

    objective: Annotated[
        Literal["denoising", "consistency_distillation", "consistency_training"], identity("what is learned")
    ]
    run: Run
    data: Data
    network: Network
    noise: Noise = Noise()
    loss: Loss = Loss()
    curriculum: Curriculum = Curriculum()
    optimizer: Optimizer
    train: Train
    teacher: Annotated[str | None, content("whom distillation follows, compared by its weights")] = None
    init: Annotated[str | None, content("null: random weights; 'teacher': the teacher's")] = None
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
