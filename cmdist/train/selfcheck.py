"""Before the first step: does the engine's gradient equal plain autograd's? Bugs in distributed gradients recur every
few releases.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cmdist.errors import CmdistError
from cmdist.train.engine import KINDS, Engine

ATTEMPTS = 50  # at a step that overflows: each halves the loss scale


def self_check(
    engine: Engine,
    plain: Sequence[Callable[[], Tensor]],
    through: Sequence[Callable[[], Tensor]],
    *,
    beta1: float,
    clip: float,
    weight_decay: float,
    tolerance: float = 1e-3,
) -> float:
    """Relative difference of one step's gradient, through the engine and by autograd; the engine is left as new. All
    ranks must call.

    `plain` and `through`: for each micro-batch of this rank its mean loss, by the bare module and by the engine. From
    zero moments, a step with learning rate 0 leaves exp_avg = (1 - beta1) gradient and the weights as they are, so the
    whole path is seen: accumulation, reduction, partition, clipping. Raises CmdistError above `tolerance`, or if there
    is no finite gradient.
    """
    world = dist.get_world_size()
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    first_scale = dataclasses.replace(engine.loss_scale)
    engine.set_lr(0.0)
    for _ in range(ATTEMPTS):
        scale = engine.loss_scale.value
        for loss in through:
            engine.backward(loss())
            taken = engine.step()
        if taken:
            break
    found = engine.slice("exp_avg", parameters[0].device) / (1.0 - beta1)
    for kind in KINDS[1:]:
        engine.load(kind, torch.zeros(engine.stop - engine.start, device=found.device))
    engine.optimizer_step = 0
    engine.loss_scale = first_scale

    expected = torch.zeros(engine.layout.total, device=found.device)
    for loss in plain:
        gradients = torch.autograd.grad(loss() * scale, parameters, allow_unused=True)
        expected += torch.cat(
            [
                torch.zeros_like(p).view(-1) if g is None else g.reshape(-1)
                for p, g in zip(parameters, gradients, strict=True)
            ]
        )
    expected /= len(plain) * world * scale
    dist.all_reduce(expected)
    if clip:
        expected *= min(1.0, clip / (float(expected.norm()) + 1e-6))
    expected = expected[engine.start : engine.stop] + weight_decay * engine.slice("master", expected.device)

    squares = torch.stack([(found - expected).double().square().sum(), expected.double().square().sum()])
    dist.all_reduce(squares)
    if not taken or not squares[1].isfinite():
        raise CmdistError(
            "self-check: the loss or its gradient is not finite before the first step; look at the weights that the "
            "run starts from "
            f"(teacher, init, loss.lpips_weights){' and at train.loss_scale' if scale != 1 else ''}"
        )
    difference = float((squares[0] / squares[1].clamp_min(1e-30)).sqrt())
    if not difference <= tolerance:
        raise CmdistError(
            f"self-check: the gradient through DeepSpeed differs from autograd's by {difference:.2g} (relative, at "
            f"most {tolerance:g}); "
            "another deepspeed version may be installed than pyproject.toml allows, "
            "or train.self_check=false skips this"
        )
    return difference
