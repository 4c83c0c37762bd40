"""What is told of a run that begins or goes on: to MLflow, and in a few lines on the terminal."""

import json
import os
import socket
import sys
import time
from typing import Any

from cmdist import build
from cmdist import config as configuration
from cmdist.config import Config
from cmdist.data.order import Order
from cmdist.system import launchers
from cmdist.system.distributed import World
from cmdist.system.texts import counted
from cmdist.tracking import environment
from cmdist.tracking.branches import ORIGIN
from cmdist.tracking.journal import Courier, Tracker
from cmdist.tracking.mlflow import spool_folder
from cmdist.tracking.tags import NUMBERS
from cmdist.train import start
from cmdist.train.selfcheck import Checked
from cmdist.train.start import Start
from cmdist.train.trainer import Trainer


def head(run_url: str) -> None:
    """Where a start begins in the log of a node, which holds those of all starts; by the first rank there."""
    rank, size, local = launchers.place()
    if local == 0:
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        job, again = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
        of_job = f", job {job}, start {again}" if job else ""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"---- {when} {node}{of_job}: ranks from {rank} on of {size}, {run_url}", flush=True)


def attempt(number: int, world: World) -> None:
    """Which attempt it has become."""
    if world.local_rank == 0:
        print(f"attempt      {number}", flush=True)


def start_tracker(
    config: Config,
    world: World,
    run_url: str,
    known: dict[str, Any],
    attempt: int,
    step: int = 0,
    courier: Courier | bool = True,
) -> Tracker:
    """The run in MLflow, with the configuration and the environment of this attempt as artifacts."""
    facts, spool = environment.describe(world), spool_folder(run_url)
    origin = {ORIGIN: json.dumps(known["origins"][0])} if known.get("origins") else {}
    tracker = Tracker.start(
        uri=known["tracking_uri"],
        experiment=known["experiment"],
        name=config.run.name,
        key=known["id"],
        params=configuration.flat(config),
        tags={
            "cmdist.run": run_url,
            "cmdist.world_size": str(world.size),
            "cmdist.device": facts["device"],
            NUMBERS: ",".join(build.numbers(config, step)),
            "mlflow.source.name": "pipelines/train.py",
            "mlflow.source.git.commit": facts["commit"],
        }
        | origin,
        spool=spool,
        courier=courier,
        attempt=attempt,
        begin=step,
    )
    texts = {
        f"environment-{attempt:06d}.json": json.dumps(facts, indent=1),
        f"config-{attempt:06d}.yaml": configuration.dump(config),
    }
    for name, text in texts.items():
        (spool / name).write_text(text)
        tracker.artifact(spool / name, "attempts")
    return tracker


def report(begun: Start, trainer: Trainer, order: Order, checked: Checked | None) -> None:
    """What the run starts from, in a few lines."""
    config, checkpoint, changed = begun.config, begun.checkpoint, begun.changed
    at = trainer.objective.at(trainer.step)
    samples = trainer.step * config.train.global_batch
    world = trainer.world.size
    print(f"run          {config.run.name}: {config.kind_name}, {trainer.engine.layout.total:,} parameters")
    print(f"from         {checkpoint.url if checkpoint else config.start or 'random weights'}")
    print(
        f"step         {trainer.step:,} of {config.train.steps:,}   epoch {order.epoch(samples):,}  "
        f" samples seen {samples:,}"
    )
    if at:
        print(f"curriculum   {', '.join(f'{name} = {value:.6g}' for name, value in at.items())}")
    was = f" (was {checkpoint.state['world_size']}, ZeRO {checkpoint.state['zero_stage']})" if checkpoint else ""
    share = config.micro_batches // world
    print(
        f"ranks        {world} on {trainer.world.device.type}, ZeRO "
        f"{config.train.zero_stage}, {counted(share, 'micro-batch', 'micro-batches')} each{was}"
    )
    if checkpoint:
        print(f"changed      {'; '.join(changed) or 'nothing'}")
    for sentence in start.ends_of_schedules(config):
        print(f"schedule     {sentence}")
    if checked is not None:
        print(f"self-check   {checked}")
    sys.stdout.flush()
