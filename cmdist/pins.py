"""The teacher and the start of a run are pinned: which weights they were is noted at the first start, and stays.

`objective.teacher: runs/edm` means its newest checkpoint then. Later starts open the same one, or are refused. A note
in TEACHER/pins keeps its averages from being thinned out.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from cmdist import config as configuration
from cmdist.checkpoints.checkpoint import checksum
from cmdist.config import Config
from cmdist.errors import CheckpointError, CmdistError
from cmdist.models import TrainedRun, open_run
from cmdist.nets import released
from cmdist.system import storage

Pin = dict[str, Any]  # url, weights (their checksum) and, of a run, step


def named(config: Config) -> dict[str, str]:
    """The places that a configuration takes weights from, by key; none for the closed form."""
    result = {}
    if config.teacher and config.teacher != "exact":
        result["objective.teacher"] = config.teacher
    if config.guide:
        result["objective.guide"] = config.guide
    if config.frozen:
        result[f"objective.{config.kind.frozen}"] = config.frozen
    if config.init and config.init != "teacher":
        result["init"] = config.init
    return result


def pin(config: Config, known: Mapping[str, Pin], begun: bool) -> dict[str, Pin]:
    """The weights that a start takes, by key: those of `known`, pinned at the first start, as far as there are any.

    `begun`: there is a checkpoint to go on from, so what the run was initialised with is only looked at if another is
    named. Raises CheckpointError if a pinned one is not there any more, or another one is named.
    """
    result = {}
    for key, url in named(config).items():
        old = known.get(key)
        only_start = key == "init"
        if old is None:
            if begun and only_start:
                continue  # an older version did not note it, and it is not needed again
            result[key] = described(url, url)
        elif begun and only_start and old["named"] == url:
            result[key] = old
        else:
            result[key] = _again(key, url, old)
    return result


def _again(key: str, url: str, old: Pin) -> Pin:
    """The same weights as `old`, where `url` is now."""
    tries = [url]
    if "step" in old and "/checkpoints/step-" not in url:  # its own folder, also if the run has moved
        moved = storage.join(url, "checkpoints", old["url"].rpartition("/")[2])
        tries = [moved, old["url"], url] if url == old["named"] else [moved, url]
    now, problem = None, ""
    for each in tries:
        try:
            now = described(each, url)
        except (CheckpointError, FileNotFoundError) as error:
            problem = problem or str(error)
        else:
            if now["weights"] == old["weights"]:
                return now
    there = f"{_said(now)} is another" if now else f"nothing can be read there ({problem})"
    raise CheckpointError(
        f"{key} = {url}: this run began with {_said(old)}, and {there}: bring that one back or name where it is, "
        "or start a new run with another run.name"
    )


def _said(each: Pin) -> str:
    return (f"step {each['step']:,} of " if "step" in each else "") + f"{each['named']} ({each['weights']})"


def described(url: str, name: str) -> Pin:
    """The weights at `url`, called `name`. Raises CheckpointError, FileNotFoundError."""
    if released.is_file(url):
        return {"named": name, "url": storage.absolute(url), "weights": f"xxh3:{checksum([storage.read(url)])}"}
    run = open_run(url)
    return {"named": name, "url": storage.absolute(run.checkpoint.url), "step": run.step, "weights": _weights(run)}


def _weights(run: TrainedRun) -> str:
    return run.checkpoint.weights_of(run.config.train.ema[0])


def opened_at(config: Config, pins: Mapping[str, Pin]) -> Config:
    """The configuration with the pinned weights' own places: what is to be opened."""
    return configuration.replaced(config, {key: each["url"] for key, each in pins.items()})


def hold(pins: Mapping[str, Pin], run_url: str, run_id: str) -> None:
    """Leave notes in the runs that the weights come from, which their retention honours, and look for the weights.

    Where nothing may be written, a warning says who needs what. Raises CheckpointError if one has just been removed.
    """
    for key, each in pins.items():
        if "step" not in each:
            continue
        theirs = each["url"].rpartition("/checkpoints/")[0]
        note = {"key": key, "run": run_url, "id": run_id, "weights": each["weights"], "time": time.time()}
        try:
            storage.write(
                storage.join(theirs, "pins", f"step-{each['step']:010d}-{run_id}.json"), json.dumps(note).encode()
            )
        except (OSError, CmdistError) as error:
            sys.stderr.write(
                f"warning: no note could be left in {theirs}/pins ({error}): {run_url} needs the averages of step "
                f"{each['step']:,} there at each start, so keep them from being removed\n"
            )
        if not storage.exists(storage.join(each["url"], "COMMIT")):
            raise CheckpointError(f"{key}: {each['url']} was removed while this run began; start it again")
