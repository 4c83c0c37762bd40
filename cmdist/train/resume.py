"""Coming back: may this checkpoint be continued under this configuration, what has changed, and the state itself."""

from collections.abc import Mapping
from typing import Any

from cmdist.errors import CheckpointError
from cmdist.train.averages import Averages, Target
from cmdist.train.checkpoint import Checkpoint
from cmdist.train.engine import KINDS, Engine
from cmdist.train.loss_scale import LossScale


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with another seed, batch, micro-batch, data set or network than the checkpoint's. Raises CheckpointError."""
    was = checkpoint.state["identity"]
    for name, now in identity.items():
        if was.get(name) != now:
            raise CheckpointError(
                f"{checkpoint.url} was trained with {name} = {_short(was.get(name))} and cannot go on with {_short(now)}: "
                f"set it back, or start a new run with another run.name"
            )


def load(checkpoint: Checkpoint, engine: Engine, averages: Averages, target: Target | None) -> None:
    """Read this rank's slices of weights, moments, averages and target; all ranks must call."""
    if checkpoint.layout != engine.layout:
        raise CheckpointError(
            f"{checkpoint.url} holds another network: {checkpoint.layout.total} weights, this one has {engine.layout.total}"
        )
    start, stop = engine.start, engine.stop
    for kind in KINDS:
        engine.load(kind, checkpoint.read_state(kind, start, stop))
    engine.optimizer_step = checkpoint.state["optimizer_step"]
    if engine.loss_scale.dynamic and checkpoint.state["loss_scale"]["dynamic"]:  # precision may change between attempts
        engine.loss_scale = LossScale(**checkpoint.state["loss_scale"])
    for decay in averages.slices:
        averages.load(decay, checkpoint.read_ema(decay, start, stop))
    if target is not None:
        target.load(engine.layout, start, checkpoint.read_state("target", start, stop))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """'key: old -> new' for each entry of two flat configurations that differ."""
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}" for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
