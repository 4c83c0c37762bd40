"""Train a run: `deepspeed pipelines/train.py CONFIG [key=value ...]`, or by torchrun, srun or plain python."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmdist import build, cost, gpus, pins
from cmdist import config as configuration
from cmdist.checkpoints import progress, record
from cmdist.checkpoints.attempt import Attempt, attempt_at
from cmdist.communication import Network
from cmdist.config import Config
from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World
from cmdist.system.watchdog import Watchdog
from cmdist.tracking.journal import Courier
from cmdist.tracking.mlflow import spool_folder
from cmdist.train import beforehand, lineage, resume, start, telling
from cmdist.train.assembly import make_trainer
from cmdist.train.glance import Glances
from cmdist.train.start import Start

GLANCE = Path(__file__).with_name("glance.py")


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, e.g. configs/digits/ct.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted keys of the configuration, e.g. train.steps=100"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|URL",
        help="auto: from the newest sound checkpoint if there is one; none: refuse to go on; "
        "a URL: start from that run or checkpoint, and go on from the run's own once it has one",
    )
    parser.add_argument(
        "--stopped-exit",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code when a request to stop ends the run early (0)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and what it means, and end"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print what the run would need (memory, FLOPs, GPU-hours), and end; needs no GPU",
    )
    parser.add_argument("--ranks", type=int, help="with --dry-run and --plan: the number of ranks (GPUs) to plan for")
    parser.add_argument(
        "--gpu", default="a100", metavar="NAME", help=f"with --plan: {', '.join(gpus.GPUS)} (default %(default)s)"
    )
    parser.add_argument(
        "--gpu-memory", type=float, help="with --plan: GB of a GPU, if it is another than its name says"
    )
    parser.add_argument("--peak-tflops", type=float, help="with --plan: of a GPU in the run's precision, likewise")
    parser.add_argument(
        "--mfu",
        type=float,
        help=f"with --plan: the part of the peak that is reached (what was measured on the GPU, else {gpus.ASSUMED})",
    )
    parser.add_argument("--node-gpus", type=int, metavar="N", help="with --plan and --intra: GPUs of a node (8)")
    parser.add_argument("--intra", type=float, metavar="GB/s", help="with --plan: of a GPU within its node, each way")
    parser.add_argument("--inter", type=float, metavar="GB/s", help="with --plan: of a node to others, each way")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    options = parser.parse_intermixed_args(arguments)
    config = configuration.load(options.config, options.overrides)
    if options.ranks is not None and not (options.plan or options.dry_run):
        raise ConfigError("--ranks is for --plan and --dry-run; a run has the ranks of its launcher")
    if options.ranks is not None and not 1 <= options.ranks <= 2**20:
        raise ConfigError(f"--ranks must be 1 to {2**20}, not {options.ranks}")
    if options.plan and options.dry_run:
        raise ConfigError("--plan and --dry-run are two commands; give one of them")
    if not options.plan and (options.gpu_memory, options.peak_tflops, options.mfu) != (None, None, None):
        raise ConfigError("--gpu-memory, --peak-tflops and --mfu are for --plan")
    network = network_of(options)
    _, ranks, _ = distributed.place()
    ranks = options.ranks or ranks
    if config.micro_batches % ranks:
        raise ConfigError(
            f"{ranks} ranks cannot share train.global_batch / train.micro_batch "
            f"= {config.micro_batches} micro-batches evenly; "
            f"take a number of ranks that divides {config.micro_batches}, or a smaller train.micro_batch"
        )
    watchdog = Watchdog(config.train.hang_minutes * 60, "train.hang_minutes")
    net = build.on_meta(config)  # an impossible network is refused before anything starts
    if options.dry_run:
        return cost.print_dry_run(config, net, ranks)
    if options.plan:
        given = options.gpu_memory, options.peak_tflops, options.mfu
        return cost.print_plan(config, ranks, options.gpu, *given, network)
    run_url = storage.join(storage.absolute(config.run.root), config.run.name)

    def look() -> None:
        with cli.before_start():
            beforehand.look(config, run_url, options.resume)
        watchdog.feed()

    telling.head(run_url)
    with watchdog:
        world = distributed.start(watchdog.seconds + distributed.MARGIN, look)
        world = dataclasses.replace(world, alive=watchdog.feed)
        with distributed.failing_together(world):
            distributed.check_apart(world)
            finished = train(config, world, run_url, options.resume)
            distributed.stop(world)
    if not finished:
        sys.exit(options.stopped_exit)


def network_of(options: argparse.Namespace) -> Network | None:
    """What connects the GPUs of a plan, if that was said. Raises ConfigError."""
    given = options.intra, options.inter
    if (options.node_gpus, *given) == (None, None, None):
        return None
    if not options.plan or None in given:
        raise ConfigError("--intra and --inter go together, with --plan; --node-gpus goes with them")
    gpus_of_node = 8 if options.node_gpus is None else options.node_gpus
    for name, value in (("node-gpus", gpus_of_node), ("intra", options.intra), ("inter", options.inter)):
        if not 0 < value < 10**6:
            raise ConfigError(f"--{name} {value:g}: a number above 0 and below a million is needed")
    return Network(gpus_of_node, *given)


def train(config: Config, world: World, run_url: str, mode: str) -> bool:
    """Train, or go on training, until the last step or a request to stop; whether the last step is done."""
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
        return go_on(begun, world, data, run_url, settled, attempt)


def go_on(
    begun: Start, world: World, data: ShardedImages, run_url: str, known: dict[str, Any], attempt: Attempt
) -> bool:
    """Train from a checkpoint, or from the beginning; whether the last step is done."""
    config = begun.config
    tracked = world.first and known["tracking_uri"] != "none"
    courier = tracked and Courier(spool_folder(run_url))  # imports MLflow while the engine is made
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
            command = [sys.executable, str(GLANCE), run_url]
            log = spool_folder(run_url) / "glance.log"
            trainer.glances = Glances(command, config.train.glance_every, config.train.glance_device, log, trainer.step)
        if tracked:
            trainer.tracker = telling.start_tracker(
                config, world, run_url, known, attempt.number, trainer.step, courier
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


if __name__ == "__main__":
    cli.run(main)
