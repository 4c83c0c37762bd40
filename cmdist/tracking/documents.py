"""The shapes of a journal's lines and of its cursor. A line of another shape is skipped like one that a kill cut short;
with a damaged cursor everything is delivered again, which changes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from cmdist.errors import DataError
from cmdist.system.typed import Document, Shape

_Count = Annotated[int, Field(ge=0, lt=2**62)]


class _Start(Shape):
    kind: Literal["start"]
    time: _Count
    pid: _Count
    uri: str
    experiment: str
    name: str
    key: str
    attempt: _Count
    begin: _Count | None = None
    params: dict[str, str]
    tags: dict[str, str]


class _Metrics(Shape):
    kind: Literal["metrics"]
    time: _Count
    step: _Count
    values: dict[str, float]


class _Artifact(Shape):
    kind: Literal["artifact"]
    path: str
    folder: str


class _End(Shape):
    kind: Literal["end"]
    time: _Count
    status: Literal["FINISHED", "FAILED", "KILLED"]


class _Cursor(Shape):
    place: _Count
    uri: str | None = None
    run_id: str | None = None
    attempt: _Count | None = None
    begin: _Count | None = None
    overlap: _Count = 0


LINES = {
    "start": Document(_Start),
    "metrics": Document(_Metrics),
    "artifact": Document(_Artifact),
    "end": Document(_End),
}
CURSOR = Document(_Cursor)


def line(text: bytes) -> dict[str, Any] | None:
    """The record in a line of a journal; None if it is none."""
    try:
        record = CURSOR.tree(text, "a line")
        kind = record.get("kind")
        return LINES[kind].check(record, "a line") if isinstance(kind, str) and kind in LINES else None
    except DataError:
        return None
