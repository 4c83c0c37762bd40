"""Before the first step: does the engine's gradient equal plain autograd's? Bugs in distributed gradients recur every
few releases.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.distributed as dist
from torch import Tensor

from cmdist import seeding
from cmdist.errors import CmdistError
from cmdist.train.engine import Engine

ATTEMPTS = 50  # at a step that overflows: each halves the loss scale
NOISE = 0.02  # standard deviation that stands in for weights that are 0
FLOOR = 1e-3  # a difference that is always allowed
# What the engine may differ by, in spreads of autograd's own passes: as a whole, and along the gradient, where a wrong
# factor shows. Rounding has no direction, so little of it lies there; how little is measured too, on few passes.
WHOLE, ALONG, ASIDE = 3.0, 6.0, 0.25
# Factors of the loss in the passes that give the spread: no powers of two, so that every product rounds otherwise, as
# it may on the way through the engine; below 1, so that fp16 does not overflow.
FACTORS = (0.9, 0.7)


@dataclass(frozen=True)
class Difference:
    """Of one gradient from another, relative to its norm: of the whole vector, along it (a factor f gives |f - 1|), and
    of the norms before clipping.
    """

    whole: float
    along: float
    norm: float = 0.0

    def allowed(self) -> tuple[float, float]:
        """As a spread between passes of autograd: the most that the engine's gradient may differ by as a whole, and
        along it or in its norm.
        """
        return max(FLOOR, WHOLE * self.whole), max(FLOOR, ALONG * self.along, ASIDE * self.whole)

    def within(self, spread: "Difference") -> bool:
        """Whether this is no more than what rounding gives; never for NaN."""
        whole, along = spread.allowed()
        return self.whole <= whole and self.along <= along and self.norm <= along


@dataclass(frozen=True)
class Checked:
    """The engine's gradient against autograd's, and how far apart passes of autograd are (0: nobody had to know)."""

    difference: float
    spread: float

    def __str__(self) -> str:
        said = f"gradient through the engine differs from autograd's by {self.difference:.1e}"
        return f"{said}, autograd's passes from each other by {self.spread:.1e}" if self.spread else said


def self_check(
    engine: Engine,
    plain: Sequence[Callable[[], Tensor]],
    through: Sequence[Callable[[], Tensor]],
    *,
    beta1: float,
    clip: float,
    weight_decay: float,
) -> Checked:
    """Compare one step's gradient, through the engine and by autograd; the engine is left as new. All ranks must call.

    `plain` and `through`: for each micro-batch of this rank its mean loss, by the bare module and by the engine. From
    zero moments, a step with learning rate 0 leaves exp_avg = (1 - beta1) gradient and the weights as they are, so the
    whole path is seen: accumulation, reduction, partition, clipping. Raises CmdistError if they differ by more than
    `Difference.allowed` says, or if there is no finite gradient.
    """
    weights = _fill_zeros(engine)
    gradient, scale, taken = _by_engine(engine, through, beta1, weight_decay)
    expected, norm = _by_autograd(engine, plain, scale)
    clipping = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
    different = _difference(gradient, expected * clipping)
    if not taken or different is None:
        raise CmdistError(
            "self-check: the loss or its gradient is not finite before the first step; look at the weights that the "
            "run starts from "
            f"(teacher, init, LPIPS){' and at train.loss_scale' if scale != 1 else ''}"
        )
    different = dataclasses.replace(different, norm=abs(engine.gradient_norm() - norm) / max(norm, 1e-30))
    spread = Difference(0.0, 0.0)
    if not different.within(spread):
        spread = _spread(engine, plain, scale, expected)
    engine.load("master", weights)
    if different.within(spread):
        return Checked(different.whole, spread.whole)
    most = spread.allowed()
    raise CmdistError(
        f"self-check: the gradient through DeepSpeed differs from autograd's by {different.whole:.2g} (relative, at "
        f"most {most[0]:.2g}), {different.along:.2g} along it and {different.norm:.2g} in its norm (at most "
        f"{most[1]:.2g}), while passes of autograd differ by {spread.whole:.2g}: "
        + (
            f"pyproject.toml may not allow the deepspeed that is installed ({version('deepspeed')})"
            if spread.whole <= FLOOR
            else "train.precision=fp32 tells an error of the engine from this device's rounding"
        )
        + ", train.self_check=false skips this"
    )


def _fill_zeros(engine: Engine) -> Tensor:
    """Put noise where weights are 0, since a new network's last convolutions are, and hide all gradients before them;
    this rank's slice of the weights as they were.
    """
    weights = engine.slice("master")
    generator = seeding.generator("cpu", 0, "self-check", engine.start)
    noise = NOISE * torch.randn(weights.shape, generator=generator)
    engine.load("master", torch.where(weights == 0, noise, weights))
    return weights


def _by_engine(
    engine: Engine, losses: Sequence[Callable[[], Tensor]], beta1: float, weight_decay: float
) -> tuple[Tensor, float, bool]:
    """This rank's slice of the gradient of a step that moves nothing, its loss scale, and whether it was finite."""
    first_scale = dataclasses.replace(engine.loss_scale)
    engine.set_lr(0.0)
    for _ in range(ATTEMPTS):
        scale = engine.loss_scale.value
        for loss in losses:
            engine.backward(loss())
            taken = engine.step()
        if taken:
            break
    device = next(engine.module.parameters()).device
    gradient = engine.slice("exp_avg", device) / (1.0 - beta1) - weight_decay * engine.slice("master", device)
    engine.zero_moments()
    engine.loss_scale = first_scale
    return gradient, scale, taken


def _by_autograd(
    engine: Engine, losses: Sequence[Callable[[], Tensor]], scale: float, factor: float = 1.0
) -> tuple[Tensor, float]:
    """This rank's slice of the gradient over all ranks, unclipped, and the norm of the whole; `factor` times the loss,
    and the result divided by it.
    """
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    total = torch.zeros(engine.layout.total, device=parameters[0].device)
    for loss in losses:  # the division by their number comes first, as in the engine: it may round
        scaled = loss() / len(losses) * (scale * factor)
        gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
        total += torch.cat(
            [
                torch.zeros_like(p).view(-1) if g is None else g.reshape(-1)
                for p, g in zip(parameters, gradients, strict=True)
            ]
        )
    total /= dist.get_world_size() * scale * factor
    dist.all_reduce(total)
    return total[engine.start : engine.stop].clone(), float(total.norm())


def _spread(engine: Engine, losses: Sequence[Callable[[], Tensor]], scale: float, first: Tensor) -> Difference:
    """The largest differences between passes of autograd that differ in rounding, and in whatever the device adds."""
    passes = [first, *(_by_autograd(engine, losses, scale, factor)[0] for factor in FACTORS)]
    between = [_difference(passes[j], passes[i]) for i in range(len(passes)) for j in range(i)]
    known = [each for each in between if each is not None]  # in fp16 a pass may overflow where another did not
    return (
        Difference(max(d.whole for d in known), max(d.along for d in known)) if known else Difference(float("nan"), 0.0)
    )


def _difference(gradient: Tensor, expected: Tensor) -> Difference | None:
    """Of two vectors of which each rank has a slice; None if one is not finite."""
    apart = gradient - expected
    sums = torch.stack(
        [(a * b).sum(dtype=torch.float64) for a, b in ((apart, apart), (expected, expected), (apart, expected))]
    )
    dist.all_reduce(sums)
    if not bool(sums.isfinite().all()):
        return None
    whole, square, along = sums.tolist()
    return Difference((whole / max(square, 1e-30)) ** 0.5, abs(along) / max(square, 1e-30))
