"""The passes of a step timed alone: what a step takes beside them is overhead."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.train import take, timed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmdist.core.noise import onto, unit_pixels
from cmdist.core.preconditioning import Model
from cmdist.nets.forward_mode import tangent_of
from cmdist.train.trainer import Trainer

# (kind, the network, shapes of its inputs, which of them carry a tangent)
Pass = tuple[str, nn.Module, tuple[tuple[int, ...], ...], tuple[bool, ...]]


def passes(trainer: Trainer, rounds: int) -> dict[str, Any]:
    """Seconds of a step and of each kind of pass that its loss takes, medians of `rounds` turns; `ratio` is the step's
    to the sum of its passes'.
    """
    calls = Counter(_recorded(trainer))
    device = trainer.world.device
    times: dict[Pass, list[float]] = {each: [] for each in calls}
    steps: list[float] = []
    for _ in range(rounds):  # in turn, since a machine is not as fast at every moment
        steps.append(timed(lambda: take(trainer), 1, 0, device))
        for each in calls:
            times[each].append(timed(_alone(each), 1, 0, device))
    step, medians = statistics.median(steps), {each: statistics.median(parts) for each, parts in times.items()}
    whole = sum(medians[each] * count for each, count in calls.items())
    named: Counter[str] = Counter()
    for each, count in calls.items():
        named[each[0]] += count
    return {
        "step": step,
        "sum": whole,
        "ratio": step / whole,
        "counts": dict(named),
        "seconds": {kind: statistics.mean(medians[each] for each in calls if each[0] == kind) for kind in named},
    }


def _recorded(trainer: Trainer) -> list[Pass]:
    """Every pass of one micro-batch's loss: with gradient, with a tangent, or plain."""
    parts: list[Pass] = []

    def recorder(call: Callable[..., Tensor], net: nn.Module) -> Callable[..., Tensor]:
        def recorded(*inputs: Tensor | None) -> Tensor:
            given = [each for each in inputs if each is not None]
            carry = tuple(tangent_of(each)[1] is not None for each in given)
            kind = "with a tangent" if any(carry) else "with gradient" if torch.is_grad_enabled() else "plain"
            parts.append((kind, net, tuple(tuple(each.shape) for each in given), carry))
            return call(*inputs)

        return recorded

    def watched(model: Any, net: nn.Module) -> Any:
        return Model(recorder(model.net, net), model.scalings) if isinstance(model, Model) else model

    networks, bare = trainer.networks, trainer.networks.bare_student.net
    assert isinstance(bare, nn.Module)
    changed = {
        "student": watched(networks.student, bare),
        "bare_student": Model(recorder(bare.forward, bare), networks.bare_student.scalings),
    }
    for name in ("target", "teacher", "frozen"):
        if isinstance(model := getattr(networks, name), Model) and isinstance(model.net, nn.Module):
            changed[name] = watched(model, model.net)
    batch = next(trainer.batches)
    images = unit_pixels(onto(batch.images, trainer.world.device))
    labels = onto(batch.labels, trainer.world.device) if trainer.conditional and batch.labels is not None else None
    generator = torch.Generator(trainer.world.device)
    draw = trainer.objective.draw(images.shape, trainer.objective.at(trainer.step), generator)
    trainer.objective.loss(dataclasses.replace(networks, **changed), images, labels, draw)
    return parts


def _alone(each: Pass) -> Callable[[], None]:
    kind, net, shapes, carry = each
    device = next(net.parameters()).device
    inputs = [torch.randn(shape, device=device) if len(shape) > 1 else _levels(shape, device) for shape in shapes]
    if len(inputs) > 2 and getattr(net, "num_classes", None):
        inputs[2] = torch.zeros(shapes[2], dtype=torch.long, device=device)
    labelled = bool(getattr(net, "num_classes", None))

    def call(*given: Tensor) -> Tensor:
        full: list[Tensor | None] = [*given]
        if not labelled and len(full) > 2:
            full.insert(2, None)
        return net.forward(*full) if kind == "with a tangent" else net(*full)  # type: ignore[no-any-return]

    moving = [place for place, yes in enumerate(carry) if yes]

    def run() -> None:
        if kind == "with gradient":
            call(*inputs).square().mean().backward()
            net.zero_grad()
        elif kind == "plain":
            with torch.no_grad():
                call(*inputs)
        else:

            def moved(*changed: Tensor) -> Tensor:
                given = list(inputs)
                for place, value in zip(moving, changed, strict=True):
                    given[place] = value
                return call(*given)

            start = tuple(inputs[place] for place in moving)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                torch.func.jvp(moved, start, tuple(torch.ones_like(each) for each in start))

    return run


def _levels(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.linspace(0.1, 1.0, shape[0], device=device)
