"""Which checkpoints a run has: its folders, what counts of them, and the newest."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cmdist.checkpoints import attempt as attempts
from cmdist.checkpoints import documents, sealed
from cmdist.checkpoints.checkpoint import FORMAT, REMOVING, UNFINISHED, Checkpoint
from cmdist.errors import CheckpointError, CmdistError, Damaged, LookupFailed, StoreMissing
from cmdist.system import storage
from cmdist.system.typed import short

_FOLDER = re.compile(r"step-(\d{10})(?:-(\d{4,}))?")
_SLICES = re.compile(r"slices-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True, order=True)
class Entry:
    """A folder below checkpoints/, and the names in it; `void`: a later attempt has started from an earlier step."""

    step: int
    attempt: int
    url: str
    names: frozenset[str] = field(compare=False)
    void: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is committed, not set aside, and not overtaken."""
        return "COMMIT" in self.names and "DAMAGED" not in self.names and not self.void

    @property
    def unfinished(self) -> bool:
        """Whether it is for certain the rest of a save or of a removal that was cut short."""
        killed_save = UNFINISHED in self.names and "VERIFIED" not in self.names
        return "COMMIT" not in self.names and (killed_save or REMOVING in self.names)

    @property
    def complete(self) -> bool:
        """Whether all data of a checkpoint are there, by their names; one that holds averages only has no slices."""
        slices = [match for name in self.names if (match := _SLICES.fullmatch(name))]
        whole = all(int(match[1]) == len(slices) for match in slices)
        return whole and "state.json" in self.names and any(name.endswith(".safetensors") for name in self.names)

    @property
    def data(self) -> list[str]:
        """The names of its files that hold data of a checkpoint, or that only a committed one has."""
        return sorted(
            name for name in self.names if name in ("state.json", "VERIFIED") or name.endswith(".safetensors")
        )


def entries(run_url: str) -> list[Entry]:
    """All checkpoint folders, by step and attempt; [] if there are none.
    Raises LookupFailed if the store could not be searched.
    """
    return list(_entries(run_url))


def _entries(run_url: str) -> Iterator[Entry]:
    try:
        for place in (run_url, storage.join(run_url, "checkpoints"), storage.join(run_url, "attempts")):
            _refuse_dangling(place)
        folders = [
            (match, name)
            for name in storage.names(storage.join(run_url, "checkpoints"))
            if (match := _FOLDER.fullmatch(name))
        ]
        starts = attempts.starts(run_url)
        for match, name in sorted(folders, key=lambda pair: (int(pair[0][1]), int(pair[0][2] or 0))):
            step, attempt, url = int(match[1]), int(match[2] or 0), storage.join(run_url, "checkpoints", name)
            void = any(number > attempt > 0 and start < step for number, start in starts)
            yield Entry(step, attempt, url, frozenset(storage.names(url)), void)
    except Exception as error:
        cause = str(error) if isinstance(error, CmdistError) else f"{type(error).__name__}: {error}"
        raise LookupFailed(
            f"could not look for checkpoints in {run_url}: {cause}; the run is not started over, try again "
            "when it can be read"
        ) from error


def _refuse_dangling(url: str) -> None:
    path = storage.local_path(url)
    if path is not None and path.is_symlink() and not path.exists():
        raise StoreMissing(f"{path} is a link to {path.readlink()}, which is not there (is that disk mounted?)")


def steps(run_url: str) -> list[int]:
    """Steps of the checkpoints that count, ascending; [] if there are none.
    Raises LookupFailed if the store could not be searched.
    """
    return sorted({entry.step for entry in entries(run_url) if entry.counts})


def open_checkpoint(run_url: str, step: int) -> Checkpoint:
    """The checkpoint of a step. Raises CheckpointError if there is none that counts,
    Damaged if its COMMIT is not one.
    """
    at_step = [entry for entry in entries(run_url) if entry.step == step]
    counting = [entry for entry in at_step if entry.counts]
    if not counting:
        raise CheckpointError(_why_none(run_url, step, at_step))
    return open_entry(counting[-1])


def _why_none(run_url: str, step: int, at_step: Sequence[Entry]) -> str:
    """Why no checkpoint of a step counts, in a sentence."""
    if not at_step:
        there = steps(run_url)
        have = f"it has step {', '.join(map(str, there[-8:]))}" if there else "it has no committed checkpoint yet"
        return f"{run_url} has no checkpoint of step {step}; {have}"
    if any("DAMAGED" in e.names for e in at_step):
        return f"{at_step[-1].url} was set aside as damaged"
    if at_step[-1].void:
        return f"{at_step[-1].url} does not count: a later attempt has started from an earlier step"
    return f"{at_step[-1].url} has no COMMIT: it was never finished"


def refuse_none(run_url: str, counting: Sequence[Entry], mode: str) -> None:
    """Raise CheckpointError if --resume is `none` and there are checkpoints that count."""
    if mode == "none" and counting:
        raise CheckpointError(
            f"--resume none, but {run_url} has committed checkpoints (newest: step {counting[-1].step}); "
            "take another run.name or --resume auto"
        )


def open_folder(url: str) -> Checkpoint:
    """The checkpoint in RUN/checkpoints/step-..., with or without the attempt at the end of the name.
    Raises CheckpointError.
    """
    run_url, _, name = url.rstrip("/").rpartition("/checkpoints/")
    match = _FOLDER.fullmatch(name)
    if not match:
        raise CheckpointError(f"{url} is not the folder of a checkpoint: that is called step- and ten digits")
    if match[2] is None:
        return open_checkpoint(run_url, int(match[1]))
    return open_entry(Entry(int(match[1]), int(match[2]), url.rstrip("/"), frozenset()))


def open_entry(entry: Entry) -> Checkpoint:
    """A committed folder. Raises Damaged if its COMMIT is empty, unreadable or of another step,
    CheckpointError if of a newer version.
    """
    where = f"{entry.url}/COMMIT"
    try:
        commit = sealed.read(where, must=False)
    except FileNotFoundError:
        gone = "has no COMMIT: it was never finished, or removed a moment ago"
        raise CheckpointError(f"{entry.url} {gone if storage.names(entry.url) else 'is not there'}") from None
    except ValueError as error:
        if isinstance(error, CmdistError):
            raise
        raise Damaged(f"{where} is damaged: {short(error)}") from error
    version = commit.get("format")
    newer = isinstance(version, int) and version > FORMAT
    if newer:
        raise CheckpointError(
            f"{entry.url} has format {version}; this version of cmdist reads up to {FORMAT}, use a newer one"
        )
    documents.COMMIT.check(commit, where)
    if (commit["step"], commit.get("attempt", 0)) != (entry.step, entry.attempt):
        theirs = f"step {commit['step']} by attempt {commit.get('attempt', 0)}"
        raise Damaged(f"{where} belongs to {theirs}, not to step {entry.step} by attempt {entry.attempt}")
    if "state.json" not in commit["files"]:
        raise Damaged(f"{where} is damaged: it does not list state.json")
    return Checkpoint(entry.url, entry.step, commit)


def newest(run_url: str) -> Checkpoint | None:
    """The newest checkpoint that counts, or None if there is none and the listing succeeded."""
    candidates = [entry for entry in entries(run_url) if entry.counts]
    return open_entry(candidates[-1]) if candidates else None


def set_aside(entry: Entry, why: str) -> None:
    """Mark a folder as damaged; nothing of it is moved or deleted."""
    storage.write(storage.join(entry.url, "DAMAGED"), why.encode())
