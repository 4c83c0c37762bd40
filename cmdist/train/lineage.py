"""Which run a folder is: run.json names its id and the place that it was made for.

A folder at another place is a copy, and becomes a new run that names its origin, when training goes on in it. Nobody
can tell a copy from a folder that was moved (the original may be out of sight), so `pipelines/checkpoints.py move` says
so. The same folder on another path (a link, another mount) is known by this attempt's claim, which both paths show.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmdist.errors import CmdistError
from cmdist.system import storage
from cmdist.tracking.journal import set_aside

Record = dict[str, Any]


def ids(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids that checkpoints in the folder may carry: the run's own, and those of the runs that it is a copy of."""
    return (record["id"], *(origin["id"] for origin in record.get("origins", [])))


def settle(record: Record, run_url: str, attempt: int) -> Record:
    """The record of the run that attempt `attempt` at a place belongs to: the same one, or that of a new run.

    To be called once the attempt is taken. A new one has another id, and what it is a copy of first in `origins`.
    """
    place = record.get("url") or _beside(run_url, record.get("name"))
    if place == run_url or _same_folder(place, run_url, attempt):
        return record | {"url": place}
    origin = {"id": record["id"], "url": place}
    return record | {"id": uuid.uuid4().hex, "url": run_url, "origins": [origin, *record.get("origins", [])]}


def announce(record: Record, spool: Path) -> None:
    """Say that a copy is a new run from here on, and set the original's journal in its folder aside."""
    origin = record["origins"][0]
    set_aside(spool, f"of-{origin['id']}")
    print(
        f"{record['url']} is a copy of {origin['url']}: a new run from here on "
        "(had it been moved, pipelines/checkpoints.py move would have kept it the same run)"
    )


def moved(record: Record, source: str, target: str) -> Record:
    """The record of a run that was moved from one place to another. Raises CmdistError if it is not of that place."""
    place = record.get("url") or _beside(source, record.get("name"))
    if place.rstrip("/") != source.rstrip("/"):
        raise CmdistError(f"{target} was made at {place}, not at {source}: give that place")
    return record | {"url": target}


def _beside(run_url: str, name: str | None) -> str:
    """Where a run of this name would lie, for a record of before places were noted."""
    parent, _, own = run_url.rstrip("/").rpartition("/")
    return f"{parent}/{name or own}"


def _same_folder(place: str, run_url: str, attempt: int) -> bool:
    claim = f"attempts/{attempt:06d}"
    try:
        return storage.read(storage.join(place, claim)) == storage.read(storage.join(run_url, claim))
    except (OSError, CmdistError):  # it is gone, or out of sight
        return False
