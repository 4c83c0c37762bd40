"""Submit a run and its evaluations as one plan, and see how they are doing. Slurm does the rest (README.md here).

python cluster/launch.py CONFIG [key=value ...] [--nodes 8] [--n 50000] [--dry-run]   training and its evaluations
python cluster/launch.py status RUN                                                   jobs, step, speed, figures
python cluster/launch.py steps RUN                                                    committed steps
"""

import argparse
import os
import shlex
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from cmdist import config as configuration
from cmdist.checkpoints import documents, search
from cmdist.errors import CmdistError, ConfigError
from cmdist.evaluation import stored
from cmdist.system import cli, launchers, storage

HERE = Path(__file__).parent
PATIENCE = 300  # seconds for a client of Slurm


class SlurmError(CmdistError):
    """sbatch refused, or there is no Slurm."""


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    if arguments[:1] == ["status"] or arguments[:1] == ["steps"]:
        parser = cli.Parser(prog=f"launch.py {arguments[0]}", description=__doc__)
        parser.add_argument("run", help="a run folder")
        run_url = storage.absolute(parser.parse_args(arguments[1:]).run)
        return status(run_url) if arguments[0] == "status" else print_steps(run_url)
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, e.g. configs/lsun_bedroom256/cd.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys of the configuration")
    parser.add_argument(
        "--script", help="default: cluster/train_imagenet64.sbatch up to 64 pixels, cluster/train_lsun.sbatch above"
    )
    parser.add_argument("--nodes", type=int, help="of training; default: the script's")
    parser.add_argument(
        "--sbatch", default="", metavar="OPTIONS", help="of sbatch for all jobs, e.g. '--partition=gpu --account=me'"
    )
    parser.add_argument(
        "--ema",
        nargs="+",
        type=float,
        metavar="DECAY",
        help="averages to evaluate at the end; default: all of train.ema",
    )
    parser.add_argument(
        "--steps", nargs="+", metavar="N|heun", help="of sampling; default: 1 2, for a denoising run heun"
    )
    parser.add_argument("--n", type=int, default=50000, help="images of an evaluation (default %(default)s)")
    parser.add_argument(
        "--at-once", type=int, default=2, help="evaluations that may run side by side (default %(default)s)"
    )
    parser.add_argument("--no-watch", action="store_true", help="no evaluations beside training, only those at its end")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, submit nothing")
    options = parser.parse_intermixed_args(arguments)
    config = configuration.load(options.config, options.overrides)
    run_url = storage.join(storage.absolute(config.run.root), config.run.name)
    common = ["sbatch", "--parsable", f"--comment=cmdist {run_url}", *shlex.split(options.sbatch)]
    script = options.script or str(
        HERE / ("train_imagenet64.sbatch" if config.data.image_size <= 64 else "train_lsun.sbatch")
    )
    evaluate = str(HERE / "evaluate.sbatch")
    unknown = [decay for decay in options.ema or [] if decay not in config.train.ema]
    if unknown:
        raise ConfigError(f"--ema {unknown[0]} is not in train.ema, which is {', '.join(map(str, config.train.ema))}")
    for option in ("nodes", "n", "at_once"):
        if getattr(options, option) is not None and getattr(options, option) < 1:
            raise ConfigError(f"--{option.replace('_', '-')} must be 1 or more")
    wrong = [name for name in options.steps or [] if name != "heun" and not (name.isdigit() and int(name))]
    if wrong:
        raise ConfigError(f"--steps {wrong[0]}: a number of steps or 'heun' is allowed")

    nodes = [f"--nodes={options.nodes}"] if options.nodes else []
    steps = options.steps or config.usual_steps()
    each = [f"--ema {decay} --steps {n}" for decay, n in product(options.ema or config.train.ema, steps)]
    training = submit([*common, *nodes, script, options.config, *options.overrides], "TRAINING", options.dry_run)
    try:
        if not options.no_watch:
            beside = [*common, f"--dependency=after:{training}", "--kill-on-invalid-dep=yes"]
            submit(
                [*beside, evaluate, f"--watch={training}", run_url, "--n", str(options.n)], "WATCHING", options.dry_run
            )
        after = [
            f"--dependency=afterok:{training}",
            "--kill-on-invalid-dep=yes",
            f"--array=0-{len(each) - 1}%{options.at_once}",
        ]
        submit(
            [*common, *after, evaluate, run_url, "--n", str(options.n), "--each", *each], "EVALUATIONS", options.dry_run
        )
    except SlurmError as error:
        cancelled = run(["scancel", training])  # and with it, as its dependency can no longer be met, the watching job
        left = f"; job {training} is left" if cancelled.returncode else f"; job {training} is cancelled"
        raise SlurmError(f"{error}{left}") from error
    if not options.dry_run:
        print(f"python cluster/launch.py status {shlex.quote(run_url)}")


def submit(command: Sequence[str], name: str, dry_run: bool) -> str:
    """Print a command and, unless `dry_run`, run it; the job's id, or $NAME in its place. Raises SlurmError."""
    if dry_run:
        # what names a job that has no id yet is not quoted: the lines, run in this order, do the same
        words = [word if word.endswith("$TRAINING") else shlex.quote(word) for word in command]
        print(f"{name}=$({' '.join(words)})")
        return f"${name}"
    done = run(command, launchers.without_ranks(os.environ))  # the new job has its own ranks
    if done.returncode:
        raise SlurmError(f"{name.lower()} was not submitted: {said(done)}")
    job = done.stdout.strip().partition(";")[0]
    print(f"{name.lower():12s} job {job}", flush=True)
    return job


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A client of Slurm. Raises SlurmError if there is none."""
    try:
        return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} has not answered for {PATIENCE} s: is Slurm's controller down?") from error
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not on this machine: is this a login node of a Slurm cluster?") from error


def print_steps(run_url: str) -> None:
    """Committed steps, a line each, and `finished` after the last one of the run."""
    steps = search.steps(run_url)
    for step in steps:
        print(step)
    if steps and steps[-1] >= load(run_url).train.steps:
        print("finished")


def load(run_url: str) -> configuration.Config:
    """The configuration of a run that has begun. Raises ConfigError."""
    url = storage.join(run_url, "config.yaml")
    try:
        return configuration.parse(storage.read(url).decode(), where=url)
    except FileNotFoundError as error:
        raise ConfigError(f"{run_url} is not a run folder, or the run has not begun: it has no config.yaml") from error


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said, in one line."""
    return "; ".join((done.stderr.strip() or done.stdout.strip()).splitlines())


def jobs(run_url: str) -> list[str]:
    """A line for each job in the queue that was submitted for a run. Raises SlurmError."""
    done = run(["squeue", "--noheader", "--format=%i|%j|%T|%r|%M|%k"])
    if done.returncode:
        raise SlurmError(f"the queue could not be read: {said(done)}")
    fields = [line.split("|", 5) for line in done.stdout.splitlines()]
    return [
        f"job          {number} {name}: {state}{'' if reason == 'None' else f' ({reason})'}, {time}"
        for number, name, state, reason, time, comment in fields
        if comment == f"cmdist {run_url}"
    ]


def status(run_url: str) -> None:
    """How a run is doing: Slurm's jobs that launch.py submitted for it, the last committed step, speed,
    time left, figures.
    """
    print(f"run          {run_url}")
    try:
        mine = jobs(run_url)
        print("\n".join(mine) or "job          none in the queue")
    except SlurmError as error:
        print(f"job          {error}")
    config = load(run_url)
    steps, total = search.steps(run_url), config.train.steps
    print(f"step         {steps[-1] if steps else 0:,} of {total:,} is committed")
    if steps:
        opened = search.open_checkpoint(run_url, steps[-1])
        clock = documents.TRAINED.check(opened.state, f"{opened.url}/state.json")["clock"]
        speed = steps[-1] / max(clock["useful"], 1e-9)  # over the whole run, without reading, saving and waiting
        wall = max(clock["saved_at"] - clock["started_at"], 1e-9)
        left = (total - steps[-1]) * wall / steps[-1]
        images = speed * config.train.global_batch
        print(
            f"speed        {speed:.3g} steps/s, {images:.4g} images/s; {clock['useful'] / wall:.0%} of the wall time "
            "since the first start"
        )
        print(f"time left    {left / 3600:.1f} hours at the run's pace so far, interruptions included")
    records = [record for _, record in stored.records(storage.join(run_url, "evaluations"))]
    newest: dict[tuple[str, str, int], tuple[float, int]] = {}
    for record in sorted(records, key=lambda r: r["step"]):
        for name, value in record["metrics"].items():
            newest[name, str(record["sampling"].get("ema")), record["protocol"]["n"]] = value, record["step"]
    for (metric, ema, n), (value, step) in sorted(newest.items()):
        print(f"{metric:12s} {value:.4f} at step {step:,}, EMA {ema}, {n:,} images")


if __name__ == "__main__":
    cli.run(main)
