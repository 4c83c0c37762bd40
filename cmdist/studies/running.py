"""The runs of a study: trained and measured by the commands that a user would give, in processes of their own."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import torch

from cmdist import config as configuration
from cmdist import gpus
from cmdist.config import Config
from cmdist.errors import CmdistError, ConfigError, RunInUse
from cmdist.plan import plan
from cmdist.studies.grid import Cell, Study, cells
from cmdist.system import jobs, storage
from cmdist.system.jobs import Job, Place
from cmdist.system.texts import counted

REPOSITORY = Path(__file__).resolve().parents[2]
LOOK = 10.0  # seconds between two looks at a run that somebody else trains
Tell = Callable[[str], object]


def prepare(study: Study, root: str, tell: Tell) -> None:
    """Make the data set and what real images score, unless they are there. Raises CmdistError, ConfigError."""
    data = study.data_at(storage.absolute(root))
    if not storage.exists(storage.join(data, "index.json")):
        if not study.prepare:
            raise ConfigError(f"{data} has no index.json, and the study does not say how it is prepared")
        command(Place(0, threading.Event()), root, "data", "prepare_data.py", *study.prepare, "--out", data)
        tell(f"data       {data}")
    if not any(name.startswith("references-") for name in storage.names(data)):
        command(Place(0, threading.Event()), root, "references", "evaluate.py", "reference", data)
        tell(f"references {data}")


def make_all(grid: Sequence[Cell], root: str, width: int | None, tell: Tell) -> list[str]:
    """Make the runs that are missing, `width` side by side; titles of those that failed. SIGTERM and Ctrl-C end all of
    them at a committed step.
    """
    by_name = {cell.name: cell for cell in grid}  # one run may stand at several places of the grid
    todo = {name: cell for name, cell in by_name.items() if any(c.missing() for c in grid if c.name == name)}
    tell(f"{counted(len(by_name), 'run')}, {len(by_name) - len(todo)} there")
    begin, work = time.monotonic(), {name: flops(cell.config) for name, cell in todo.items()}
    ended: list[str] = []
    seeds = list(dict.fromkeys(cell.seed for cell in grid))

    def ended_with(name: str, error: BaseException | None) -> None:
        ended.append(name)
        spent, left = sum(work[n] for n in ended), sum(c for n, c in work.items() if n not in ended)
        seconds = (time.monotonic() - begin) * left / spent
        how = f"failed: {error}" if error else f"{len(ended)} of {len(todo)}, about {duration(seconds)} left"
        tell(f"{by_name[name].title:50s} {how}")

    works = [
        Job(
            name,
            [need.name for need in cell.needs if need.name in todo],
            partial(_make_as_told, grid, name, root, tell),
        )
        for name, cell in sorted(todo.items(), key=lambda item: seeds.index(item[1].seed))  # a seed after the other
    ]
    with terminated_as_interrupted():
        failed = jobs.run(works, width or jobs.places(), ended_with)
    return [by_name[name].title for name in failed]


def _make_as_told(grid: Sequence[Cell], name: str, root: str, tell: Tell, place: Place) -> None:
    for number, cell in enumerate([cell for cell in grid if cell.name == name]):
        if not number:
            tell(f"{cell.title:50s} begins; output in {logs(root) / name}.log")
        make(cell, root, lambda line: None, place)


def make(cell: Cell, root: str, tell: Tell, place: Place | None = None) -> None:
    """Train a run to its end and measure it, as far as that is missing. Raises CmdistError with the log's place, or if
    a run that it follows is not trained to its end: it would learn from the newest step that is there.
    """
    place = place or Place(0, threading.Event())
    if not cell.trained():
        if short := [need.title for need in cell.needs if not need.trained()]:
            raise CmdistError(f"{cell.title} follows {short[0]}, which is not trained to its end")
        file = logs(root) / f"{cell.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(configuration.dump(cell.config))
        limit = time.monotonic() + 60 * cell.config.train.hang_minutes
        while not cell.trained():
            code = command(place, root, cell.name, "train.py", str(file), allowed=(0, RunInUse.exit_code))
            if code == RunInUse.exit_code:  # another study, or what is left of a killed one, trains it
                if time.monotonic() > limit:
                    raise CmdistError(f"{cell.url} is trained by somebody else and does not come to its end")
                place.wait(LOOK)
        tell(f"{cell.title}: trained")
    for step in cell.missing():
        arguments = [cell.url, "--checkpoint", str(step), "--n", str(cell.measure.n)]
        usual = [sampler for sampler in cell.samplers(step) if sampler not in cell.measure.times]
        for samplers, times in [(usual, None), *(([name], levels) for name, levels in cell.measure.times.items())]:
            at = ["--times", *map(str, times)] if times else []
            if samplers:
                command(place, root, cell.name, "evaluate.py", *arguments, "--steps", *samplers, *at)
        tell(f"{cell.title}: measured at step {step}")


def command(place: Place, root: str, name: str, pipeline: str, *arguments: str, allowed: Sequence[int] = (0,)) -> int:
    """The exit code of a pipeline, run as its user would, into a log. Raises CmdistError unless the code is allowed."""
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    if torch.cuda.is_available():
        environment |= {"CUDA_VISIBLE_DEVICES": str(place.number)}
    else:
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"} | environment
    log = logs(root) / f"{name}.log"
    code = place.run([sys.executable, f"pipelines/{pipeline}", *arguments], log, environment, REPOSITORY)
    if code not in allowed:
        last = log.read_text(errors="replace").replace("\r", "\n").strip().rpartition("\n")[2]
        raise CmdistError(f"{pipeline} ended with {code}: {last} ({log})")
    return code


def logs(root: str) -> Path:
    """The folder of what commands say: below the root, or beside this process for a root in a store."""
    return (storage.local_path(storage.absolute(root)) or Path("runs/studies")).absolute() / "logs"


def print_plan(study: Study, root: str, tell: Tell) -> None:
    """The grid, what each run would cost, and whether it is there."""
    data = study.data_at(storage.absolute(root))
    prepared = storage.exists(storage.join(data, "index.json"))
    grid = cells(study, root, prepared)
    if not prepared:
        tell(f"{data} is not there yet, whose hash is in the names of runs: they are others then")
    by_name, a100 = {cell.name: cell for cell in grid}, gpus.gpu("a100")
    missing = {name for name, cell in by_name.items() if cell.missing()}
    for number, cell in enumerate(grid):
        state = "missing" if cell.name in missing else "there"
        tell(f"{number:3d} {cell.title:50s} {cell.name:40s} {flops(cell.config) / 1e12:9.1f} TFLOP   {state}")
    together = sum(flops(by_name[name].config) for name in missing) / 1e12
    runs = f"{counted(len(by_name), 'run')}, {len(missing)} missing"
    tell(f"{runs}: {together:,.1f} TFLOP of training, as --plan counts")
    hours = sum(
        flops(cell.config) / (a100.peak(cell.config.train.precision) * 1e12 * gpus.ASSUMED * 3600)
        for cell in map(by_name.__getitem__, missing)
    )
    tell(f"that is {hours:,.1f} GPU-hours of an A100 at {gpus.ASSUMED:.0%} of its peak, without evaluations")


def flops(config: Config) -> float:
    """Counted floating-point operations of a whole run; its seed and places do not matter."""
    changes = {"run.seed": 0, "run.name": "any", "run.root": "any"}
    return _flops(configuration.dump(configuration.replaced(config, changes)))


@cache
def _flops(text: str) -> float:
    config = configuration.parse(text)
    return plan(config, 1).flops * config.train.global_batch * config.train.steps


def duration(seconds: float) -> str:
    """In minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM ends what was started, as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
