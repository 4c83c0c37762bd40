"""Traces of earlier progress in a run folder, and what dead attempts have left lying about.

Nothing committed and no trace is a run that was killed before its first commit: it starts over by itself. Nothing
committed and a trace is a run whose checkpoints are elsewhere, incomplete or deleted: only a person can decide.
"""

import re
from collections.abc import Sequence

from cmdist.checkpoints import attempt as attempts
from cmdist.checkpoints import retention, sealed, search
from cmdist.checkpoints.search import Entry
from cmdist.errors import CmdistError, ProgressLost
from cmdist.system import storage

_ATTEMPT = re.compile(r"/checkpoints/step-\d{10}-(\d{4,})/")
_SHOWN = 4  # traces of a kind in the sentence


def traces(run_url: str, left: Sequence[Entry], elsewhere: bool) -> list[str]:
    """What says that a run without a checkpoint that counts has had one, in words; [] if nothing does.

    `elsewhere`: it is told to start from another run, so that having started beyond step 0 says nothing.
    """
    known = attempts.known(run_url)
    folders = []
    for entry in left:
        name = entry.url.rpartition("/")[2]
        if entry.void and "COMMIT" in entry.names:
            folders.append(f"{name}, committed, before which a later attempt has started")
        elif "COMMIT" not in entry.names and not entry.unfinished and _had_more(entry, known):
            folders.append(f"{name} with {', '.join(entry.data)} but no COMMIT")
    lines = _some(folders, "checkpoints/")
    if known.saved:
        lines.append(f"attempts/: attempt {known.saved[0]} has committed")
    beyond = [(number, step) for number, step in known.starts if step > 0]
    if beyond and (known.own or not elsewhere):
        of = "" if known.own else " of another run, which --resume has to name again"
        shown = ", ".join(f"attempt {n} started from step {step}" for n, step in beyond[-_SHOWN:])
        lines.append(f"attempts/: {shown}{of}")
    top = storage.names(run_url)
    for folder in {"evaluations", "glances"} & set(top):
        lines += _some(storage.names(storage.join(run_url, folder)), f"{folder}/")
    committed = _committed(run_url) if "run.json" in top else 0
    if committed:
        lines.append(f"run.json: step {committed} was committed")
    return lines


def refuse_lost(run_url: str, folders: Sequence[Entry], elsewhere: bool) -> None:
    """Raise ProgressLost if a run without a checkpoint that counts has had one."""
    lines = traces(run_url, folders, elsewhere)
    if lines:
        raise ProgressLost(
            f"{run_url} holds no committed checkpoint, but traces of earlier progress ({'; '.join(lines)}); the run is "
            "not started over: mount, copy or move back what is missing (COMMIT files too), or, to start anew, take "
            "another run.name or move the folder away"
        )


def clear(run_url: str, attempt: attempts.Attempt) -> list[str]:
    """Remove what attempts before this one have left unfinished: folders and uploads in parts; and the small files of
    those long ago. What to say of it.
    """
    said = []
    try:
        cut_short, kept = retention.remains(search.entries(run_url), attempt.number)
        for entry in cut_short:
            retention.remove(entry)
        storage.abort_uploads(storage.join(run_url, "checkpoints"), lambda url: _of_dead(url, attempt.number))
        attempt.prune()
        if kept:
            said.append(
                f"{len(kept)} folders of earlier attempts hold complete data that does not count "
                f"({kept[-1].url.rpartition('/')[2]} is the newest); they stay until you remove them"
            )
    except (OSError, CmdistError) as error:
        said.append(f"what earlier attempts left unfinished could not be removed: {error}")
    return said


def _had_more(entry: Entry, known: attempts.Known) -> bool:
    """Whether a folder without COMMIT is not just what a killed save of code before UNFINISHED has left."""
    certain = "VERIFIED" in entry.names or entry.complete or entry.attempt >= known.marks
    return bool(entry.data) and certain


def _some(names: Sequence[str], where: str) -> list[str]:
    """The names below a folder, as one trace, cut to a few."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{where}: {', '.join(names[:_SHOWN])}{more}"] if names else []


def _committed(run_url: str) -> int:
    """The newest step that was committed when the run last started, as run.json says."""
    try:
        return int(sealed.read(storage.join(run_url, "run.json"), must=False).get("committed", 0))
    except (FileNotFoundError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # of the store
            raise
        return 0  # damaged: whoever needs it says so


def _of_dead(url: str, attempt: int) -> bool:
    """Whether a file belongs to a checkpoint folder of an attempt before `attempt`."""
    match = _ATTEMPT.search(url)
    return match is not None and 0 < int(match[1]) < attempt
