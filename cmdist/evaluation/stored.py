"""Files that evaluations leave, as they are read again: records of figures, and scores of real images."""

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from cmdist import migrations
from cmdist.checkpoints import sealed
from cmdist.errors import DataError, Malformed
from cmdist.system import storage
from cmdist.system.typed import Document, Shape, Tree

_Step = Annotated[int, Field(ge=0, lt=10**10)]


Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Protocol(Shape):
    space: str
    n: Annotated[int, Field(gt=0)]


class _Weights(Shape):
    weights: str


class _Record(Shape):
    title: str
    step: _Step
    protocol: _Protocol
    protocol_id: str
    sampling: dict[str, Any]
    checkpoint: _Weights
    metrics: dict[str, Figure]
    images: str
    code: str
    device: str
    ranks: int
    time: Annotated[int, Field(ge=0, lt=2**63)]
    seconds: float
    identity: str
    stem: str
    measured: str | None = None


class _Scores(Shape):
    extractor: str
    reference: str
    n: int
    bootstrap: Figure
    matched_gaussian: Figure


class _Glance(Shape):
    weights: str


RECORD = Document(_Record, DataError, "remove it, and the same evaluation makes it again")
SCORES = Document(_Scores, DataError, "remove it, and `evaluate.py reference` makes it again")
GLANCE = Document(_Glance, DataError)


def records(folder: str, start: str = "step-") -> list[tuple[str, Tree]]:
    """(name, record) of the figures in a folder whose file names begin with `start`, as today's format has them.

    A damaged one is named on stderr and left out, so that its figures are made again. Raises FormatError.
    """
    rows = []
    for name in storage.names(folder):
        if not (name.startswith(start) and name.endswith(".json")):
            continue
        where = storage.join(folder, name)
        try:
            record = migrations.EVALUATION.migrate(_opened(RECORD, where), where)
            rows.append((name, RECORD.check(record, where)))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (DataError, Malformed) as error:
            again = "" if isinstance(error, DataError) else f"; {RECORD.remedy}"
            print(f"warning: {error}{again}", file=sys.stderr, flush=True)
    return rows


def seen(url: str) -> str | None:
    """Which weights a glance has looked at; None if there is none, or what is there says nothing of it."""
    try:
        return str(GLANCE.read(storage.read(url), url)["weights"])
    except (FileNotFoundError, DataError):
        return None


def scores(folder: str) -> list[Tree]:
    """What real images score, as it is kept beside a data set; a damaged file is named on stderr and left out."""
    rows = []
    for name in storage.names(folder):
        if name.startswith("references-") and name.endswith(".json"):
            where = storage.join(folder, name)
            try:
                rows.append(SCORES.check(_opened(SCORES, where), where))
            except DataError as error:
                print(f"warning: {error}", file=sys.stderr, flush=True)
    return rows


def write(url: str, record: Tree, figures: Mapping[str, float]) -> None:
    """Write a record, sealed, so that an edited value is noticed. Raises DataError if one of its figures is not
    finite: nothing is written then.
    """
    if strange := [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]:
        raise DataError(
            f"{', '.join(strange)}, which is no figure, so no record is written to {url}: look at the reference and at "
            "the images"
        )
    storage.write(url, sealed.seal(record))


def _opened(document: Document, where: str) -> Tree:
    """The tree in a file, its seal compared and taken off; older ones have none. Raises DataError."""
    tree = document.tree(storage.read(where), where)
    try:
        return sealed.opened(tree, must=False)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}; {document.remedy}") from error
