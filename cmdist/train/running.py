"""A run from its configuration to its end, on every rank."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from cmdist import build, pins
from cmdist.checkpoints import progress, record
from cmdist.checkpoints.attempt import Attempt, attempt_at
from cmdist.config import Config
from cmdist.data.images import ShardedImages
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World
from cmdist.system.watchdog import Watchdog
from cmdist.tracking.journal import Courier
from cmdist.tracking.mlflow import spool_folder
from cmdist.train import beforehand, lineage, resume, start, telling
from cmdist.train.assembly import make_trainer
from cmdist.train.glance import Glances
from cmdist.train.start import Start


def run(config: Config, mode: str, glance: Path, courier: Courier | None = None) -> bool:
    """Train, or go on training, until the last step or a request to stop; whether the last step is done.

    `mode`: `--resume`'s; `glance`: the script of glances; `courier`: one that waits already, on rank 0.
    Raises CmdistError.
    """
    watchdog = Watchdog(config.train.hang_minutes * 60, "train.hang_minutes")
    build.on_meta(config)  # an impossible network is refused before anything starts
    run_url = storage.join(storage.absolute(config.run.root), config.run.name)

    def look() -> None:
        with cli.before_start():
            beforehand.look(config, run_url, mode)
        watchdog.feed()

    telling.head(run_url)
    with watchdog:
        world = distributed.start(watchdog.seconds + distributed.MARGIN, look)
        world = dataclasses.replace(world, alive=watchdog.feed)
        with distributed.failing_together(world):
            distributed.check_apart(world)
            finished = train(config, world, run_url, mode, glance, courier)
            distributed.stop(world)
    return finished


def train(config: Config, world: World, run_url: str, mode: str, glance: Path, courier: Courier | None = None) -> bool:
    """As `run`, in a process group that is there."""
    world.alive()
    with cli.before_start():
        data = build.dataset(config, world)
        known = start.read_run(run_url, config, world)
    world.alive()
    with attempt_at(run_url, world) as attempt:
        telling.attempt(attempt.number, world)
        world.alive()
        with cli.before_start():
            settled = resume.once(world, lambda: lineage.settle(known, run_url, attempt.number))
            checkpoint = resume.find(run_url, lineage.ids(settled), mode, world)
            world.alive()
            begun = start.start_from(config, settled, checkpoint, run_url, data.index_hash, world)
        world.alive()
        if checkpoint is not None and checkpoint.step >= config.train.steps:
            if world.first:
                print(f"{run_url} is finished: step {checkpoint.step} of {config.train.steps} is committed")
            return True
        if settled["id"] != known["id"]:  # a copy, of which MLflow is told as of a new run
            uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or known["tracking_uri"]
            settled |= {"name": config.run.name, "tracking_uri": uri, "experiment": config.tracking.experiment}
            settled["origins"][0]["step"] = checkpoint.step if checkpoint else 0
            if world.first:
                lineage.announce(settled, spool_folder(run_url))
        return _go_on(begun, world, data, run_url, settled, attempt, glance, courier)


def _go_on(
    begun: Start,
    world: World,
    data: ShardedImages,
    run_url: str,
    known: dict[str, Any],
    attempt: Attempt,
    glance: Path,
    courier: Courier | None,
) -> bool:
    """Train from a checkpoint, or from the beginning; whether the last step is done."""
    config = begun.config
    tracked = world.first and known["tracking_uri"] != "none"
    if tracked and courier is None:
        store = known["tracking_uri"].partition(":")[0]
        courier = Courier(store, spool_folder(run_url))  # imports MLflow while the engine is made
    elif courier is not None and not tracked:  # a run stays where it has begun
        courier.dismiss()
    trainer, order, checked = make_trainer(
        config, world, data, begun.checkpoint, run_url, known["id"], attempt, begun.measured, begun.pinned
    )
    own = begun.checkpoint is not None and begun.checkpoint.url.startswith(f"{run_url}/")
    attempt.begin(trainer.step, own or begun.checkpoint is None)
    if world.first:
        pins.hold(begun.pinned, run_url, known["id"])
        record.write(run_url, known | {"pins": begun.pinned} | ({"committed": trainer.step} if own else {}))
        start.write_config(run_url, config)
        telling.report(begun, trainer, order, checked)
        for line in progress.clear(run_url, attempt):
            print(f"warning: {line}", file=sys.stderr)
        if config.train.glance_every:
            command = [sys.executable, str(glance), run_url]
            log = spool_folder(run_url) / "glance.log"
            trainer.glances = Glances(command, config.train.glance_every, config.train.glance_device, log, trainer.step)
        if tracked:
            trainer.tracker = telling.start_tracker(
                config, world, run_url, known, attempt.number, trainer.step, courier or True
            )
    status = "FAILED"
    try:
        finished = trainer.fit()
        status = "FINISHED" if finished else "KILLED"
        if world.first and status == "KILLED":
            cause = trainer.stop.signal or "another rank"
            print(
                f"stopped by {cause} after step {trainer.step}, which is committed; the same command goes on from there"
            )
    finally:
        trainer.close(status)
    return finished
