"""Coming back: which checkpoint can be continued, may it be under this configuration, what has changed,
and the state itself.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from cmdist.checkpoints import documents, progress, search
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.errors import CheckpointError, CmdistError, Damaged, LookupFailed, StoreDenied, StoreError, StoreMissing
from cmdist.system import sharing, storage
from cmdist.system.distributed import World
from cmdist.train.averages import Averages, Copy
from cmdist.train.engine import KINDS, Engine
from cmdist.train.loss_scale import LossScale

T = TypeVar("T")


def find(run_url: str, run_ids: Collection[str], mode: str, world: World) -> Checkpoint | None:
    """The checkpoint to go on from, all of it verified; each rank holds its part of it. All ranks must call.

    `run_ids`: the run's own, and those of the runs that it was copied from.

    `mode` auto: the newest whose every byte is right; damaged ones are named and set aside. None only if the run has
    never committed anything and nothing says that it has. none: refuse if there is one. A URL, of a checkpoint or
    another run: start from that, but once the run has a checkpoint of its own, go on from its newest, so that the same
    command may be given again. Raises LookupFailed, CheckpointError, ProgressLost.
    """
    folders = once(world, lambda: search.entries(run_url))
    counting = [entry for entry in folders if entry.counts]
    search.refuse_none(run_url, counting, mode)
    for entry in reversed(counting):
        try:
            sound = _fetch(lambda e=entry: search.open_entry(e), run_ids, world)  # type: ignore[misc]
        except Damaged as error:
            if world.first:
                search.set_aside(entry, str(error))
                sys.stderr.write(f"warning: {error}; it is set aside, and the one before is looked at\n")
                sys.stderr.flush()
            continue
        if sound is not None:
            return sound
    spoilt = [entry.url for entry in folders if "DAMAGED" in entry.names or entry.counts]
    if spoilt:
        raise CheckpointError(
            f"{run_url} has committed checkpoints, but none that can be continued (look into {spoilt[-1]}): "
            "the run is not started over; repair one, or start from another with --resume URL under another run.name"
        )
    elsewhere = mode not in ("auto", "none")
    once(world, lambda: progress.refuse_lost(run_url, folders, elsewhere))
    return _elsewhere(mode, world) if elsewhere else None


def _fetch(open_it: Callable[[], Checkpoint], run_ids: Collection[str], world: World) -> Checkpoint | None:
    """A checkpoint with every rank's part verified; None if it holds averages only. Raises Damaged on all ranks.

    What it consists of, COMMIT and state.json, is read by rank 0 for all.
    """

    def look() -> Checkpoint:
        opened = open_it()
        if run_ids and "run" in opened.commit and opened.commit["run"] not in run_ids:
            raise Damaged(f"{opened.url}/COMMIT belongs to another run ({opened.commit['run']})")
        if opened.whole:
            _ = opened.state  # which goes along from now on
        return opened

    opened = once(world, look)
    if not opened.whole:
        return None
    sharing.on_each_rank(world, lambda: _as_lookup(lambda: opened.fetch(world.rank, world.size)))
    return opened


def _elsewhere(url: str, world: World) -> Checkpoint:
    """The checkpoint that a URL names: its folder, or a run folder for its newest."""
    url = storage.absolute(url)

    def open_it() -> Checkpoint:
        checkpoint = search.open_folder(url) if "/checkpoints/step-" in url else search.newest(url)
        if checkpoint is None:
            raise CheckpointError(
                f"--resume {url}: no checkpoint is there; give a run folder or RUN/checkpoints/step-..."
            )
        return checkpoint

    checkpoint = _fetch(open_it, (), world)
    if checkpoint is None:
        raise CheckpointError(f"--resume {url}: only averages are left there, with which training cannot go on")
    return checkpoint


def once(world: World, look: Callable[[], T]) -> T:
    """`look()` of rank 0, which asks the store, on every rank; all ranks must call.

    Raises what is wrong with a file as it is, and what a store does as LookupFailed.
    """
    return sharing.once(world, lambda: _as_lookup(look))


def _as_lookup(look: Callable[[], T]) -> T:
    try:
        return look()
    except (StoreError, StoreMissing, StoreDenied) as error:
        raise LookupFailed(str(error)) from error
    except CmdistError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LookupFailed(f"{type(error).__name__}: {error}") from error


def load(checkpoint: Checkpoint, engine: Engine, averages: Averages, copies: Mapping[str, Copy]) -> None:
    """Read this rank's slices of weights, moments, averages and copies; all ranks must call. Raises CheckpointError."""
    state = documents.TRAINED.check(checkpoint.state, f"{checkpoint.url}/state.json")
    if difference := checkpoint.layout.difference(engine.layout):
        raise CheckpointError(f"{checkpoint.url} holds another network: {difference}")
    start, stop = engine.start, engine.stop
    for kind in KINDS:
        engine.load(kind, checkpoint.read_state(kind, start, stop))
    engine.optimizer_step = state["optimizer_step"]
    if engine.loss_scale.dynamic and state["loss_scale"]["dynamic"]:  # precision may change between attempts
        engine.loss_scale = LossScale(**state["loss_scale"])
    missing = [f"average with decay {decay}" for decay in averages.slices if decay not in checkpoint.emas]
    missing += [name for name in copies if not checkpoint.has(name)]
    if missing:
        raise CheckpointError(f"{checkpoint.url} holds no {missing[0]}, which this run needs to go on from there")
    for decay in averages.slices:
        averages.load(decay, checkpoint.read_ema(decay, start, stop))
    for name, each in copies.items():
        each.load(engine.layout, start, checkpoint.read_state(name, start, stop))
    checkpoint.release()
