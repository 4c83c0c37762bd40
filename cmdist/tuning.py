"""The search of multistep times on a trained run: every probe is a record of its evaluations, so a killed search goes
on, and another one asks again for nothing.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from cmdist import build, quality
from cmdist.config import Config
from cmdist.core.noise import karras_sigmas
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import generation, measurement, records, times
from cmdist.evaluation.metrics.table import METRICS
from cmdist.evaluation.records import Subject
from cmdist.models import TrainedRun
from cmdist.quality import Request
from cmdist.system import distributed, storage
from cmdist.system.distributed import World
from cmdist.system.typed import Document, Shape, Tree

LEAST, LONGER = 60.0, 5.0  # a probe of another job is waited for: seconds, and as many times the longest of one's own


@dataclass(frozen=True)
class Search:
    """What is looked for: times for `steps` evaluations that score best in `metric` among a Karras grid of `levels`."""

    metric: str
    steps: int = 2
    levels: int = 40
    few: int = 1000  # images of a probe that brackets
    many: int = 5000  # of one that decides, and of the figure at the end


class _Result(Shape):
    step: int
    ema: float
    metric: str
    times: list[float]
    probes: list[list[Annotated[list[float], Field(min_length=3, max_length=3)]]]
    fresh: float
    seed: int


RESULT = Document(_Result, DataError, "remove it, and search_times.py makes it again from its probes")


def check(search: Search, config: Config) -> None:
    """Raise ConfigError, in one sentence, for a search that cannot be."""
    if config.kind.makes != "consistency":
        raise ConfigError(f"{config.run.name} makes a {config.kind.makes}; times are searched for consistency models")
    row = METRICS.get(search.metric)
    if row is None or row.better != "lower":
        names = ", ".join(name for name, each in METRICS.items() if each.better == "lower")
        raise ConfigError(f"--metric {search.metric}: of those that are the lower the better one is needed: {names}")
    if search.steps < 2:
        raise ConfigError(f"--steps {search.steps}: 2 or more; one step has no time to search")
    if search.levels < search.steps + 1:
        raise ConfigError(f"--levels {search.levels}: at least {search.steps + 1} are needed for {search.steps} steps")
    if not 2 <= search.few <= search.many <= generation.MOST:
        raise ConfigError(f"--few {search.few}, --many {search.many}: 2 <= few <= many <= {generation.MOST} is needed")


def search_times(
    run: TrainedRun,
    search: Search,
    request: Request,
    world: World,
    ema: float | None,
    tell: Callable[[str], object],
    part: tuple[int, int] = (1, 1),
) -> Tree:
    """The result, also written to the run's evaluations; all ranks must call. Probes make image i from seed i; the
    times found are scored once more on fresh seeds, behind all of those.

    As part (K, N) of N jobs it makes every N-th of the probes that are asked for at a time and leaves the others to the
    other jobs, but makes them too if they do not come.
    """
    config, url = run.config, run.checkpoint.url
    decay = config.train.ema[0] if ema is None else ema
    denoise = build.load_denoiser(run, decay, world.device)
    subject = Subject(config.run.name, decay, denoise, {"url": url, "weights": run.checkpoint.weights_of(decay)})
    run_url = url.rpartition("/checkpoints/")[0]
    request = dataclasses.replace(request, n=search.few, metrics=[search.metric], steps=["1"], times=None)
    evaluation = quality.assembled(config, run_url, run.step, [subject], request, world)
    if world.first:  # retention keeps the averages of this step from now on
        storage.create(storage.join(evaluation.folder, f"step-{run.step:010d}.begun"), b"")
    noise = config.noise

    longest = 0.0  # seconds of a probe of one's own

    def score(levels: Sequence[float], n: int, seed: int = 0, left: bool = False) -> float:
        nonlocal longest
        begin, patience = time.monotonic(), max(LEAST, LONGER * longest) if left else 0.0
        sampler = generation.multistep(denoise, levels, noise.sigma_min)
        images = dataclasses.replace(evaluation.images, n=n, seed=seed)
        one = dataclasses.replace(evaluation, subjects=[(subject, sampler)], images=images)
        shown = records.evaluate(one, world, lambda line: None, patience)
        value = shown[0]["metrics"][f"{search.metric}_{sampler.name}"] if world.first else 0.0
        value = float(distributed.gather(value, world.control)[0])
        longest = longest if left else max(longest, time.monotonic() - begin)
        if world.first:
            tell(f"{' '.join(f'{level:.4g}' for level in levels)}   {search.metric} {value:.5g}   {n} images")
        return value

    def scores(several: Sequence[Sequence[float]], n: int) -> list[float]:
        own = [place for place in range(len(several)) if place % part[1] == part[0] - 1]
        left = [place for place in range(len(several)) if place not in own]
        values = {place: score(several[place], n, left=place in left) for place in (*own, *left)}
        return [values[place] for place in range(len(several))]

    grid = karras_sigmas(search.levels, noise.sigma_min, noise.sigma_max, noise.rho).tolist()
    outcome = times.search(scores, grid, search.steps, search.few, search.many)
    result = {
        "step": run.step,
        "ema": decay,
        "metric": search.metric,
        "times": list(outcome.times),
        "probes": [[list(probe) for probe in probes] for probes in outcome.probes],
        "fresh": score(outcome.times, search.many, search.many, left=part[0] > 1),
        "seed": search.many,
    }
    if world.first:
        what = dataclasses.asdict(search) | {"weights": subject.source["weights"], "ema": decay}
        name = f"times-{run.step:010d}-{search.steps}-{measurement.digest(what)}.json"
        storage.write(storage.join(evaluation.folder, name), json.dumps(result, indent=1).encode())
    return result


def level(text: str) -> float:
    """A noise level of a command line. Raises ConfigError."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--times {text}: falling noise levels, or `search` alone, are needed") from None


def with_times(request: Request, run: TrainedRun, emas: Sequence[float] | None) -> Request:
    """`request` with the times that were searched for a checkpoint. Raises ConfigError."""
    result = result_of(run, emas[0] if emas else None, request.steps)
    steps = request.steps or [str(len(result["times"]))]
    return dataclasses.replace(request, steps=steps, times=result["times"], searched=result["metric"])


def result_of(run: TrainedRun, ema: float | None, steps: Sequence[str] | None) -> dict[str, Any]:
    """The result of the one search that was made for a checkpoint's average and number of steps. Raises ConfigError if
    there is none, or several that disagree.
    """
    folder = storage.join(run.checkpoint.url.rpartition("/checkpoints/")[0], "evaluations")
    decay = run.config.train.ema[0] if ema is None else ema
    numbers = {int(step) for step in steps or () if step.isdigit() and int(step) > 1}
    results = []
    for name in storage.names(folder):
        if name.startswith(f"times-{run.step:010d}-") and name.endswith(".json"):
            where = storage.join(folder, name)
            tree = RESULT.check(RESULT.tree(storage.read(where), where), where)
            if tree["ema"] == decay and (not numbers or len(tree["times"]) in numbers):
                results.append(tree)
    if not results:
        raise ConfigError(
            f"--times search: no times were searched for step {run.step}, EMA {decay}; "
            f"`pipelines/search_times.py {run.checkpoint.url.rpartition('/checkpoints/')[0]}` does that"
        )
    if len({tuple(each["times"]) for each in results}) > 1:
        several = "; ".join(f"{each['times']} on {each['metric']}" for each in results)
        raise ConfigError(f"--times search: several were found ({several}): say --steps, or give --times themselves")
    return results[0]
