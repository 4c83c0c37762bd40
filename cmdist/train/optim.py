"""The optimizer, and its learning rate as a function of the step."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


def make_optimizer(
    kind: Literal["radam", "adam"],
    parameters: Iterable[nn.Parameter],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """RAdam (the paper's) or Adam over one group; the learning rate is set before each step."""
    cls = {"radam": torch.optim.RAdam, "adam": torch.optim.Adam}[kind]
    return cls([p for p in parameters if p.requires_grad], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay)


def learning_rate(step: int, lr: float, total_steps: int, warmup_steps: int = 0, decay_fraction: float = 0.0) -> float:
    """lr of step `step` (from 0): linear warm-up, constant, then linear to 0 over the last `decay_fraction` of the
    run.
    """
    factor = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    tail = decay_fraction * total_steps
    if tail:
        factor *= min(1.0, (total_steps - step) / tail)
    return lr * max(factor, 0.0)
