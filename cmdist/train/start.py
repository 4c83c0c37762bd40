"""What a run starts from: run.json, the checkpoint, and the configuration that follows from both."""

import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmdist import config as configuration
from cmdist import identity, models, pins
from cmdist.checkpoints import record, search
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.config import Config
from cmdist.pins import Pin
from cmdist.system import sharing, storage
from cmdist.system.distributed import World
from cmdist.tracking import mlflow as tracking
from cmdist.train import beforehand, resume


@dataclass(frozen=True)
class Start:
    """A run at one of its starts: with the configuration that holds from here on, and what has changed since."""

    config: Config
    checkpoint: Checkpoint | None
    measured: dict[str, str]  # hashes of what the run learns from
    pinned: dict[str, Pin]  # the weights that it begins with and follows
    changed: list[str]


def read_run(run_url: str, config: Config, world: World) -> dict[str, Any]:
    """What run.json says, or will say at the first start. All ranks must call."""
    return resume.once(world, lambda: _look_at_run(run_url, config))


def _look_at_run(run_url: str, config: Config) -> dict[str, Any]:
    if storage.exists(record.url(run_url)):
        return record.read(run_url)
    left = search.newest(run_url)  # of a run whose run.json was lost
    key = left.commit["run"] if left else uuid.uuid4().hex
    uri = beforehand.first_tracking_uri(config)
    tracking.check(uri)
    known = {"id": key, "name": config.run.name, "tracking_uri": uri, "experiment": config.tracking.experiment}
    return known | {"url": run_url}


def start_from(
    config: Config, known: Mapping[str, Any], checkpoint: Checkpoint | None, run_url: str, index_hash: str, world: World
) -> Start:
    """`config` with what the run has fixed, after a comparison with the checkpoint's own. All ranks must call.

    `known` is run.json. From a checkpoint of another run everything may be changed that its weights allow. Raises
    CheckpointError.
    """

    def look() -> tuple[Config | None, dict[str, Pin]]:
        before = models.config_of(checkpoint) if checkpoint else None
        old = known.get("pins")
        if old is None and checkpoint and before:  # of the run that it goes on from, as far as the same is named
            same = pins.named(before).items() & pins.named(config).items()
            old = {key: each for key, each in checkpoint.state.get("pins", {}).items() if key in dict(same)}
        return before, pins.pin(config, old or {}, begun=checkpoint is not None)

    before, pinned = resume.once(world, look)
    measured = sharing.once(world, lambda: models.measured(config, index_hash))
    measured = measured | {key: each["weights"] for key, each in pinned.items()}
    if checkpoint is None or before is None:
        return Start(configuration.fixed(config), None, measured, pinned, [])
    config, differences = identity.compared(config, before, checkpoint, run_url, measured)
    for change in differences:
        if change.kind == "warned" and world.first:
            print(
                f"warning: {change.key} was {change.was} and is {change.now} from step {checkpoint.step} on: "
                "the same run with other rounding or another pace",
                file=sys.stderr,
            )
    changed = [f"{change.key}: {change.was} -> {change.now}" for change in differences]
    return Start(config, checkpoint, measured, pinned, sorted(changed))


def write_config(run_url: str, config: Config) -> None:
    """config.yaml of this start; what a version without formats wrote there stays beside it, for its checkpoints."""
    where, before = storage.join(run_url, "config.yaml"), storage.join(run_url, models.BEFORE)
    if storage.exists(where) and not storage.exists(before):
        text = storage.read(where)
        if not text.startswith(b"format:"):
            storage.write(before, text)
    storage.write(where, configuration.dump(config).encode())


def ends_of_schedules(config: Config) -> list[str]:
    """What no longer moves before the run's last step, in sentences with what can be done about it."""
    o, last = config.optimizer, config.train.steps
    total = getattr(getattr(config.objective, "curriculum", None), "total_steps", None)
    told = []
    if o.decay_fraction and o.decay_end is not None and o.decay_end < last:
        told.append(
            f"the learning rate is 0 from step {o.decay_end:,} on, where its fall ends as it was fixed at the first "
            f"start: optimizer.decay_end={last} lets it fall over the last {o.decay_fraction:g} of {last:,} steps "
            "instead, and optimizer.decay_fraction=0 keeps it constant"
        )
    if total is not None and total < last:
        told.append(
            f"the curriculum stays where it is from step {total:,} on, where it ends as it was fixed at "
            "the first start (objective.curriculum.total_steps)"
        )
    return told
