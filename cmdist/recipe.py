"""A recipe for images of one's own: network, batches, steps and averages, from an index, GPUs and hours.

Widths, learning rates and batches are those of the recipes in configs/, the nearest one that the hours pay for; what it
costs is what `--plan` counts. Nothing here was tuned on the images.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cmdist import config as configuration
from cmdist.config import Config
from cmdist.errors import ConfigError
from cmdist.plan import Plan, forward_pass, plan
from cmdist.system import plain_yaml

PER_PARAMETER = 1.0  # images that training must see for each parameter; the shipped recipes see 0.5 to 8
FEWEST_STEPS = 10_000
SMALLEST_BATCH = 64
STUDENTS_PASSES = 5  # forward passes at least: teacher's two, target's, its own, and one backward that costs no less
OF_MEMORY = 0.9  # what the plan may fill
OF_HOURS = 0.9  # the rest: starts, checkpoints, glances
HALF_LIFE = 500_000  # images; EDM's, with its ramp-up
WARM_UP = 10_000_000  # images; EDM's
SEVERAL_EPOCHS = 20  # from so many on the teacher has its dropout


@dataclass(frozen=True)
class Means:
    """GPUs, GB of each, peak TFLOP/s (fp32's, 16 bits'), the part of it that is reached, and hours for all."""

    gpus: int
    memory: float
    peaks: tuple[float, float]
    mfu: float
    hours: float


@dataclass(frozen=True)
class Rung:
    """A width that was trained with before, and what was taken with it there."""

    like: str  # the recipe
    width: int
    blocks: int
    smallest: int  # pixels a side from which on it is thought of
    batch: int
    rates: tuple[float, float]  # teacher's (Adam), student's (RAdam)
    dropout: float
    most: int  # images that the recipe sees

    @property
    def narrow(self) -> bool:
        """Below the widths of the released models."""
        return self.width < 128


LADDER = (
    Rung("configs/lsun_bedroom256", 256, 2, 128, 2048, (1e-4, 1e-5), 0.1, 1_228_800_000),
    Rung("configs/imagenet64", 192, 3, 64, 2048, (1e-4, 8e-6), 0.1, 2_500_000_000),
    Rung("configs/cifar10", 128, 3, 32, 512, (1e-3, 4e-4), 0.13, 409_600_000),
    Rung("between configs/emoji and configs/cifar10", 96, 2, 32, 512, (1.5e-3, 6e-4), 0.1, 200_000_000),
    Rung("configs/emoji", 48, 1, 16, 256, (2e-3, 1e-3), 0.0, 40_000_000),
    Rung("configs/digits", 16, 1, 2, 64, (2e-3, 2e-3), 0.0, 4_000_000),
)
MULTIPLES = {1: [1], 2: [1, 2], 3: [1, 2, 2], 4: [1, 2, 2, 2], 5: [1, 1, 2, 3, 4], 6: [1, 1, 2, 2, 4, 4]}


@dataclass(frozen=True)
class Images:
    """What an index says."""

    url: str
    count: int
    size: int
    channels: int
    classes: int


@dataclass(frozen=True)
class Teacher:
    """One that is there: its run or file, and its keys by section: network, data, perhaps noise."""

    url: str
    keys: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """The student's configuration as a text with reasons, and what overrides it for a teacher, unless it is there."""

    text: str
    teacher: tuple[str, ...]
    warnings: tuple[str, ...]


def network(rung: Rung, images: Images) -> dict[str, Any]:
    """The keys of a U-Net of this width for such images. Raises ConfigError for sizes that cannot be halved."""
    unshuffle = 2 if rung.narrow and rung.width > 16 and images.size >= 32 and images.size % 4 == 0 else 1
    side = images.size // unshuffle
    deepest = 4 if images.size <= 32 else 8
    halvings = 0
    while side % 2 == 0 and side // 2 >= deepest and halvings < len(MULTIPLES) - 1:
        side, halvings = side // 2, halvings + 1
    if side > 32:
        raise ConfigError(
            f"images of {images.size} pixels cannot be halved down to 32 or less: prepare them with --size "
            f"{max(8, images.size // 32 * 32)} (pipelines/prepare_data.py)"
        )
    multiples = [1, 2, 3, 4] if halvings == 3 and images.size == 64 else MULTIPLES[halvings + 1]
    sides = [images.size // unshuffle // 2**level for level in range(halvings + 1)]
    keys: dict[str, Any] = {
        "kind": "adm",
        "model_channels": rung.width,
        "channel_mult": multiples,
        "num_res_blocks": rung.blocks,
        "attention_resolutions": [
            side for side in sides if 8 <= side <= (16 if images.size <= 32 else 32) and side < images.size
        ],
    }
    if rung.narrow:
        keys |= {"norm_groups": "by_width", "head_channels": rung.width, "resblock_updown": False}
    return keys | ({"unshuffle": unshuffle} if unshuffle > 1 else {})


def choose(images: Images, means: Means, name: str, teacher: Teacher | None = None) -> Recipe:
    """The widest of the ladder for which the hours pay, or a student of a teacher. Raises ConfigError."""
    if teacher is not None:
        for key, here in (("image_size", images.size), ("channels", images.channels), ("classes", images.classes)):
            if (there := teacher.keys["data"].get(key, here)) != here:
                raise ConfigError(f"--teacher {teacher.url} has data.{key} {there}, {images.url} has {here}")
    rungs = [_rung_of(teacher)] if teacher else [rung for rung in LADDER if images.size >= rung.smallest]
    for rung in rungs:
        attempt, last = _Attempt(images, means, name, rung, teacher), rung is rungs[-1]
        if last or not attempt.hopeless():
            attempt.plan()
            if attempt.fits and (attempt.pays or last):
                return attempt.recipe()
    raise ConfigError(f"--memory {means.memory:g}: not even one image at a time fits")


def _rung_of(teacher: Teacher) -> Rung:
    """The rung of a teacher's width, for batch and learning rate."""
    width = int(teacher.keys["network"]["model_channels"])
    return min(LADDER, key=lambda rung: abs(math.log(rung.width / width)))


class _Attempt:
    """One rung."""

    def __init__(self, images: Images, means: Means, name: str, rung: Rung, teacher: Teacher | None) -> None:
        self.images, self.means, self.name, self.rung, self.given = images, means, name, rung, teacher
        self.keys = {**teacher.keys["network"]} if teacher else network(rung, images)
        self.keys.pop("dropout", None)
        self.precision = "fp32" if rung.width < 192 or not means.peaks[1] else "bf16"
        self._plans: dict[int, Plan] = {}
        self._rate = means.gpus * means.peaks[self.precision == "bf16"] * 1e12 * means.mfu  # FLOP a second
        self._budget = means.hours * OF_HOURS / (1 if teacher else 2) * 3600 * self._rate

    def hopeless(self) -> bool:
        """Its forward pass alone says that it cannot pay."""
        parameters, flops = forward_pass(self._config(1, 1, 1))
        return min(self._budget / (STUDENTS_PASSES * flops), self.rung.most) < PER_PARAMETER * parameters

    def plan(self) -> None:
        """Plan one image at a time."""
        one = self._planned(1)
        self.parameters, self._one = one.parameters, one.total_memory
        self.fits = self._one / 1e9 <= OF_MEMORY * self.means.memory
        # a denoiser's forward pass, and a backward one of twice as much
        self.flops = {"student": one.flops} | ({} if self.given else {"teacher": 3 * one.forward_flops})
        self.seen = {who: min(self._budget / cost, self.rung.most) for who, cost in self.flops.items()}
        self.pays = min(self.seen.values()) >= PER_PARAMETER * self.parameters

    def _planned(self, micro: int) -> Plan:
        """The plan of a micro-batch on each rank; steps change nothing of what is asked of it."""
        if micro not in self._plans:
            self._plans[micro] = plan(self._config(micro, micro, 1), self.means.gpus)
        return self._plans[micro]

    def settle(self) -> None:
        """Choose batches and steps of an attempt that fits."""
        self.micro = self._micro_batch()
        self.batch = self._batch(min(self.seen.values()))
        self.steps = {who: _round(max(1, int(images / self.batch))) for who, images in self.seen.items()}
        self.hours = {who: self.steps[who] * self.batch * self.flops[who] / self._rate / 3600 for who in self.seen}
        self.total = self._planned(self.micro).total_memory

    def _micro_batch(self) -> int:
        """The largest power of two whose plan fits the memory, up to a rank's share of the batch."""
        each = self._planned(2).total_memory - self._one
        most = max(1, self.rung.batch // self.means.gpus)
        room = OF_MEMORY * self.means.memory * 1e9 - self._one
        return 2 ** int(math.log2(min(most, 1 + int(room / each) if each > 0 else most)))

    def _batch(self, seen: float) -> int:
        """The recipe's batch, halved while there would be too few steps; a multiple of ranks and micro-batch."""
        batch = self.rung.batch
        while batch > SMALLEST_BATCH and seen / batch < FEWEST_STEPS:
            batch //= 2
        while self.micro > 1 and self.micro * self.means.gpus > batch:
            self.micro //= 2
        unit = self.micro * self.means.gpus
        return unit * max(1, round(batch / unit))

    def _tree(self, batch: int, micro: int, steps: int) -> dict[str, dict[str, Any]]:
        """The student's configuration."""
        i, rung = self.images, self.rung
        pixels = i.channels * i.size**2
        return {
            "objective": {
                "kind": "consistency_distillation",
                "teacher": self.given.url if self.given else f"runs/{self.name}/edm",
                "distance": {"kind": "pseudo_huber", "c": float(f"{0.00054 * math.sqrt(pixels):.2g}")},
                "weighting": "inverse_gap",
                "index": {"kind": "lognormal"},
                "solver": "heun",
                "curriculum": {"kind": "constant", "n_timesteps": 18, "mu": 0.0},
            },
            "run": {"root": f"runs/{self.name}", "name": "cd"},
            "data": {"url": i.url, "image_size": i.size, "channels": i.channels, "classes": i.classes, "flip": False},
            **({"noise": {**noise}} if self.given and (noise := self.given.keys.get("noise")) else {}),
            "network": self.keys,
            "optimizer": {"kind": "radam", "lr": rung.rates[1], "clip": 1.0, "decay_fraction": 0.3},
            "train": {
                "steps": steps,
                "global_batch": batch,
                "micro_batch": micro,
                "precision": self.precision,
                "ema": [HALF_LIFE],
                "ema_ramp_up": 0.05,
                "log_every": max(1, min(100, steps // 20)),
                "checkpoint_every": max(1, min(2000, steps // 4)),
            },
            "sampling": {"times": [80.0, 0.8], "ode_steps": 18},
            "tracking": {"experiment": self.name},
        }

    def _config(self, batch: int, micro: int, steps: int) -> Config:
        """To be planned: with gpus times the micro-batch as batch."""
        tree = self._tree(max(batch, micro * self.means.gpus), micro, steps)
        tree["train"]["ema"] = [0.999]
        del tree["train"]["ema_ramp_up"]
        return configuration.of_tree(tree | {"init": "teacher"}, "recipe")

    def overrides(self) -> tuple[str, ...]:
        """What makes the teacher's run of the student's file."""
        steps, images = self.steps["teacher"], self.images
        dropped = self.rung.dropout and steps * self.batch >= SEVERAL_EPOCHS * images.count
        warm = min(WARM_UP // self.batch, steps // 20)
        return (
            *("objective.kind=denoising", "init=null", "run.name=edm", "optimizer.kind=adam"),
            f"optimizer.lr={self.rung.rates[0]:g}",
            f"optimizer.warmup_steps={warm}",
            f"train.steps={steps}",
            *([f"network.dropout={self.rung.dropout}"] if dropped else []),
        )

    def recipe(self) -> Recipe:
        """In words."""
        self.settle()
        tree = self._tree(self.batch, self.micro, self.steps["student"])
        if self.batch > HALF_LIFE:
            tree["train"]["ema"] = [self.batch]
        text = "\n".join(_lines(tree, self._why())) + "\n"
        configuration.parse(text, where="the recipe")
        teacher = () if self.given else self.overrides()
        configuration.parse(text, teacher, "the recipe's teacher")
        return Recipe(text, teacher, tuple(self._warnings()))

    def _warnings(self) -> Iterator[str]:
        seen = {who: steps * self.batch for who, steps in self.steps.items()}
        if not self.pays:
            yield (
                f"{self.means.hours:g} hours pay for {min(seen.values()):,} images, fewer than the network has "
                f"parameters ({self.parameters:,}): expect little"
            )
        if min(self.seen.values()) >= self.rung.most:
            yield f"the hours pay for more images than {self.rung.like} saw: {sum(self.hours.values()):.3g} are planned"

    def _why(self) -> dict[str, str]:
        """A reason for each section."""
        i, m = self.images, self.means
        where = "the GPU" if m.gpus == 1 else f"each of {m.gpus} GPUs"
        each = f"{self.batch // (self.micro * m.gpus)} x {self.micro} images on {where}"
        seen = self.steps["student"] * self.batch
        width = (
            "the teacher's"
            if self.given
            else f"{self.parameters / 1e6:.3g} million parameters, width of {self.rung.like}"
        )
        more = "" if self.given or not self.pays else f", the widest that sees {PER_PARAMETER:g} image for each in time"
        return {
            "objective": "distillation, pseudo-Huber (c: 0.00054 sqrt(CHW), improved CT), N: 18 (CM, table 3); LPIPS "
            "needs VGG's weights as a file: docs/training.md",
            "data": f"{i.count:,} images; flip: true if a mirrored image could be one of them",
            "network": width + more,
            "optimizer": f"lr: {self.rung.like}; falls to 0 in the last 30 %",
            "train": f"{seen:,} images, {seen / max(1, i.count):,.0f} times each, in {self.hours['student']:.3g} hours "
            f"by the plan at {m.mfu:.0%} of the peak; {self.total / 1e9:.3g} of {m.memory:g} GB; {each}; average: "
            "EDM's half-life and ramp-up",
        }


def _lines(tree: Mapping[str, Mapping[str, Any]], why: Mapping[str, str]) -> Iterator[str]:
    """YAML, a section at a time, reasons above."""
    for name, section in tree.items():
        yield from _filled("#", why.get(name, "").split()) if name in why else ()
        values = [f"{key}: {plain_yaml.line(value)}" for key, value in section.items()]
        if name == "objective":
            yield from ("objective:", *(f"  {value}" for value in values), "init: teacher")
        else:
            yield from _filled(f"{name}: {{", [*(f"{value}," for value in values[:-1]), f"{values[-1]}}}"])


def _filled(start: str, words: list[str]) -> Iterator[str]:
    """Lines of at most 110 columns; those after the first begin as a comment does, or with two spaces."""
    line, empty = start, True
    for word in words:
        if len(line) + len(word) > 110 and not empty:
            yield line
            line, empty = "#" if start == "#" else " ", True
        line += word if empty and start != "#" and line == start else f" {word}"
        empty = False
    yield line


def _round(steps: int) -> int:
    """Down to two digits."""
    unit = 10 ** max(0, len(str(steps)) - 2)
    return steps // unit * unit
