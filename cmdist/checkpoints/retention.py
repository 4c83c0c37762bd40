"""Which checkpoints stay: the last n, every m-th step, and the averages of steps that were evaluated."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmdist.checkpoints import sealed
from cmdist.checkpoints.checkpoint import REMOVING
from cmdist.checkpoints.search import Entry, entries, open_entry
from cmdist.errors import CmdistError
from cmdist.system import storage

_EVALUATION = re.compile(r"step-(\d{10})")


@dataclass(frozen=True)
class Keep:
    """The rule: whole checkpoints of the `last` so many steps (0: of all) and of steps divisible by `every` (0: of
    none).
    """

    last: int = 3
    every: int = 0


@dataclass(frozen=True)
class Thinning:
    """What is to go: whole folders, and all but the averages of others."""

    remove: tuple[Entry, ...]
    strip: tuple[Entry, ...]

    def __bool__(self) -> bool:
        return bool(self.remove or self.strip)


def choose(folders: Sequence[Entry], newest: Entry, keep: Keep, evaluated: Iterable[int]) -> Thinning:
    """What the rule leaves over below `newest`, which is committed and verified.

    Damaged folders, set aside, are never removed; nor is anything complete that does not count: it has lost its COMMIT,
    or another attempt has gone its own way before it, and only a person knows whether it is still wanted.
    """
    if not keep.last:
        return Thinning((), ())
    below = [
        e
        for e in folders
        if (e.step, e.attempt) != (newest.step, newest.attempt) and e.step <= newest.step and "DAMAGED" not in e.names
    ]
    best = {
        e.step: e for e in sorted(below) if e.counts and e.step < newest.step
    }  # of two at a step the later attempt's
    whole = [step for step, e in best.items() if _whole(e)]
    stays = {best[step].url for step in whole[len(whole) - keep.last + 1 :]} if keep.last > 1 else set()
    stays |= {e.url for step, e in best.items() if keep.every and step % keep.every == 0}
    averages = {best[step].url for step in set(evaluated) & best.keys()}
    remove = [e for e in below if e.url not in stays | averages and _may_go(e, newest.attempt)]
    return Thinning(tuple(remove), tuple(e for e in below if e.url in averages - stays and _whole(e)))


def _may_go(entry: Entry, attempt: int) -> bool:
    return entry.counts or (entry.attempt <= attempt and (entry.unfinished or not entry.complete))


def remains(folders: Sequence[Entry], attempt: int) -> tuple[list[Entry], list[Entry]]:
    """What attempts before `attempt`, all of them over, have left that is no checkpoint: what was cut short and is to
    go, and what is complete and stays although it does not count.
    """
    dead = [e for e in folders if 0 < e.attempt < attempt and not e.counts and "DAMAGED" not in e.names]
    return [e for e in dead if e.unfinished], [e for e in dead if e.complete and not e.unfinished]


def evaluated(run_url: str) -> set[int]:
    """Steps that an evaluation has been made of, or begun; and those that other runs have pinned (pins.py)."""
    names = [name for folder in ("evaluations", "pins") for name in storage.names(storage.join(run_url, folder))]
    return {int(match[1]) for name in names if (match := _EVALUATION.match(name))}


def thinning(run_url: str, step: int, attempt: int, keep: Keep) -> Thinning:
    """The plan for a run whose newest checkpoint, committed and verified, is that of `step` by `attempt`."""
    folders = entries(run_url)
    newest = next(e for e in folders if (e.step, e.attempt) == (step, attempt))
    return choose(folders, newest, keep, evaluated(run_url))


def thin(what: Thinning) -> None:
    """Carry a plan out; cut short at any point, it leaves no checkpoint with holes."""
    for entry in what.remove:
        remove(entry)
    for entry in what.strip:
        commit = dict(open_entry(entry).commit)
        gone = [name for name in commit["files"] if name.startswith("slices-")]
        commit["files"] = {name: file for name, file in commit["files"].items() if name not in gone}
        storage.write(storage.join(entry.url, "COMMIT"), sealed.seal(commit))  # first: see `Checkpoint.whole`
        for name in gone:
            storage.remove(storage.join(entry.url, name))


def refused(what: Thinning, error: CmdistError) -> str:
    """What to say of a store that lets nothing be deleted."""
    count = len(what.remove) + len(what.strip)
    return (
        f"old checkpoints cannot be removed: {error}; {count} that train.keep_checkpoints and train.keep_every leave "
        "over stay, and more with every save"
    )


def remove(entry: Entry) -> None:
    """Remove a folder; cut short, it is known as what it is."""
    storage.write(storage.join(entry.url, REMOVING), b"")
    for name in ("COMMIT", "state.json"):  # without the first the rest is no checkpoint, without the second incomplete
        if name in entry.names:
            storage.remove(storage.join(entry.url, name))
    storage.remove(entry.url)


def _whole(entry: Entry) -> bool:
    return any(name.startswith("slices-") for name in entry.names)
