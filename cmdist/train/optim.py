"""The optimizer, and its learning rate as a function of the step."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn


def make_optimizer(
    kind: Literal["radam", "adam"],
    parameters: Iterable[nn.Parameter],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    compiled: bool = False,
) -> torch.optim.Optimizer:
    """RAdam (the paper's) or Adam over one group; the learning rate is set before each step. `compiled`: RAdam reads
    and writes each number once, and rounds otherwise than torch's.
    """
    cls = {"radam": CompiledRAdam if compiled else RAdam, "adam": Adam}[kind]
    if not compiled:
        _spare_compiler()
    return cls([p for p in parameters if p.requires_grad], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay)


BLOCK = 2**16  # numbers: weights, gradient and moments of so many, with what a step makes of them, fit its cache


class _InBlocks:
    """A step's dozen operations on a CPU, block after block instead of each on a whole vector: the same bits."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """The lists of weights, gradients, moments and counters that a step goes through."""
        complex_: bool = super()._init_group(group, *lists)  # type: ignore[misc]
        *vectors, steps = lists
        if any(v.device.type != "cpu" or not v.is_contiguous() for each in vectors for v in each):
            return complex_
        counts = [-(-p.numel() // BLOCK) for p in vectors[0]]
        for each in vectors:
            each[:] = [block for v in each for block in v.detach().view(-1).split(BLOCK)]
        steps[:] = [  # each block counts once more
            step if first else step.clone()
            for step, count in zip(steps, counts, strict=True)
            for first in (True, *(False,) * (count - 1))
        ]
        return complex_


class Adam(_InBlocks, torch.optim.Adam):
    """torch's, whose step does not look whether a compiler is at work, which would import it: two seconds."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class RAdam(_InBlocks, torch.optim.RAdam):
    """torch's, likewise."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.RAdam.step))


def _spare_compiler() -> None:
    """The methods of optimizers that torch keeps from being compiled: it asks its compiler for that, and imports it."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        if not hasattr(method, "__dynamo_disable"):  # where torch keeps what its compiler has made of the method
            setattr(method, "__dynamo_disable", method)


class CompiledRAdam(torch.optim.RAdam):
    """torch's RAdam in one pass over memory: torch has none that is fused, and takes about 30 reads and writes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; `closure` is not called."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] += 1
                rate, adaptive = _rate(int(state["step"]), group["lr"], group["betas"])
                _compiled_pass()(
                    *(p.data, p.grad, state["exp_avg"], state["exp_avg_sq"], torch.tensor(rate)),
                    *(*group["betas"], group["eps"], group["weight_decay"], adaptive),
                )


def _rate(step: int, lr: float, betas: tuple[float, float]) -> tuple[float, bool]:
    """What the moments' quotient is multiplied by, and whether the second moment is known well enough to divide by."""
    beta1, beta2 = betas
    seen = 1.0 - beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / seen
    rate = lr / (1.0 - beta1**step)
    if length <= 5.0:
        return rate, False
    variance = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return float(rate * (variance * seen) ** 0.5), True


def _pass(
    weights: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    rate: Tensor,  # of the host, (): another number at each step compiles nothing anew
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adaptive: bool,
) -> None:
    gradient = gradient + weight_decay * weights
    first.lerp_(gradient, 1.0 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    weights.sub_(rate * (first / (second.sqrt() + eps) if adaptive else first))


@functools.cache
def _compiled_pass() -> Callable[..., None]:
    return torch.compile(_pass, dynamic=False)  # where it is first needed: this imports the compiler


def learning_rate(step: int, lr: float, total_steps: int, warmup_steps: int = 0, decay_fraction: float = 0.0) -> float:
    """lr of step `step` (from 0): linear warm-up, constant,
    then linear to 0 over the last `decay_fraction` of the run.
    """
    factor = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    tail = decay_fraction * total_steps
    if tail:
        factor *= min(1.0, (total_steps - step) / tail)
    return lr * max(factor, 0.0)
