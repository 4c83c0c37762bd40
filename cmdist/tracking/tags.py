"""What MLflow's tags and parameters say, texts that anybody may have changed: numbers, and JSON by its shape."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from cmdist.errors import DataError
from cmdist.system.typed import Document, Shape, Tree

MOST = 2**53  # of a count
NUMBERS = "cmdist.numbers"  # the tag with the names of the objective's numbers: N, mu, a stage


class _Origin(Shape):
    url: str
    step: int = 0


class _Branched(Shape):
    begin: int
    attempt: int
    changed: dict[str, str]
    given_up: Annotated[str, Field(alias="given up")]


class _Changed(Shape):
    """Parameters of a later attempt, by name."""

    __pydantic_extra__: dict[str, str]


CHANGED = Document(_Changed)
ORIGIN = Document(_Origin)
BRANCHED = Document(_Branched)


def count(texts: Mapping[str, str], name: str, default: int) -> int:
    """A whole number from 0 on; `default` if there is none under that name, or something else."""
    text = texts.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else default


def number(metrics: Mapping[str, float], name: str) -> float | None:
    """A finite metric; None if there is none."""
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def told(document: Document, tags: Mapping[str, str], name: str, run: str) -> Tree | None:
    """A tag's JSON; None if there is none, or a damaged one, which is named on stderr."""
    if name not in tags:
        return None
    try:
        return document.read(tags[name], f"the tag {name} of run {run} in MLflow")
    except DataError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def evaluations(runs: Sequence[dict[str, Any]], parent: str) -> list[dict[str, Any]]:
    """The finished evaluations of a run, in order of step and time."""
    children = [run for run in runs if run["parent"] == parent and run["status"] == "FINISHED"]
    children = [run for run in children if "protocol_id" in run["params"]]
    return sorted(children, key=lambda run: (count(run["tags"], "step", 0), run["start"]))
