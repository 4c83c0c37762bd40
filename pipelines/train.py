"""Train a run: `deepspeed pipelines/train.py CONFIG [key=value ...]`, or by torchrun, srun or plain python."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmdist import gpus
from cmdist.errors import ConfigError
from cmdist.system import cli, collector, files, launchers, plain_yaml
from cmdist.tracking.journal import Courier

if TYPE_CHECKING:
    from cmdist.communication import Network

# What imports torch, in seconds, is imported where it is needed: --help needs none of it, and MLflow is imported
# meanwhile by the courier.

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
    if options.ranks is not None and not (options.plan or options.dry_run):
        raise ConfigError("--ranks is for --plan and --dry-run; a run has the ranks of its launcher")
    if options.ranks is not None and not 1 <= options.ranks <= 2**20:
        raise ConfigError(f"--ranks must be 1 to {2**20}, not {options.ranks}")
    if options.plan and options.dry_run:
        raise ConfigError("--plan and --dry-run are two commands; give one of them")
    if not options.plan and (options.gpu_memory, options.peak_tflops, options.mfu) != (None, None, None):
        raise ConfigError("--gpu-memory, --peak-tflops and --mfu are for --plan")
    rank, ranks, _ = launchers.place()
    training = not (options.plan or options.dry_run)
    store = _likely_store(options.config, options.overrides) if training and rank == 0 else "none"
    courier = None if store == "none" else Courier(store)
    try:
        finished = _main(options, options.ranks or ranks, courier)
    finally:
        if courier is not None:
            courier.dismiss()
    if not finished:
        sys.exit(options.stopped_exit)


def _likely_store(path: str, overrides: Sequence[str]) -> str:
    """The scheme of the MLflow store that the run will likely be told to, or none: its record is read later."""
    uris: list[str | None] = []
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # which are told when it is read
        if Path(path).is_file():  # what comes from a pipe can be read once
            uris.append(plain_yaml.load(files.text(Path(path)))["tracking"]["uri"])
    uris += [override.partition("=")[2] for override in overrides if override.startswith("tracking.uri=")]
    uri = (uris[-1] if uris else None) or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite"
    scheme = str(uri).partition(":")[0]
    return scheme if re.fullmatch(r"[a-z0-9+]{1,40}", scheme) else "sqlite"


def _main(options: argparse.Namespace, ranks: int, courier: Courier | None) -> bool:
    """What was asked for; whether nothing is left to do."""
    with collector.resting():
        from cmdist import build, cost
        from cmdist import config as configuration

    config = configuration.load(options.config, options.overrides)
    network = network_of(options)
    if config.micro_batches % ranks:
        raise ConfigError(
            f"{ranks} ranks cannot share train.global_batch / train.micro_batch "
            f"= {config.micro_batches} micro-batches evenly; "
            f"take a number of ranks that divides {config.micro_batches}, or a smaller train.micro_batch"
        )
    if options.dry_run:
        cost.print_dry_run(config, build.on_meta(config), ranks)
    elif options.plan:
        build.on_meta(config)  # an impossible network is refused before it is planned
        given = options.gpu_memory, options.peak_tflops, options.mfu
        cost.print_plan(config, ranks, options.gpu, *given, network)
    else:
        with collector.resting():
            from cmdist.train import running
        return running.run(config, options.resume, GLANCE, courier)
    return True


def network_of(options: argparse.Namespace) -> "Network | None":
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
    from cmdist.communication import Network

    return Network(gpus_of_node, *given)


if __name__ == "__main__":
    cli.run(main)
