"""The shapes of a run's JSON files: what is read from each, and the error that it raises."""

from typing import Annotated, Any

from pydantic import Field

from cmdist.errors import CheckpointError, Damaged
from cmdist.system.typed import Document, PlainName, Shape

Count = Annotated[int, Field(ge=0, lt=2**62)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_Tensor = Annotated[tuple[str, list[Count]], Field(strict=False)]  # name and shape, as JSON's list
_Begun = Annotated[tuple[Count, Count], Field(strict=False)]  # attempt and step


class _File(Shape):
    size: Count
    xxh3: str
    blocks: list[str] | None = None


class _Commit(Shape):
    format: int
    step: Count
    files: dict[PlainName, _File]
    run: str | None = None
    attempt: Count = 0
    world_size: int | None = None
    time: Number | None = None
    block_size: Annotated[int, Field(gt=0)] = 1


class _Slice(Shape):
    file: PlainName
    start: Count
    stop: Count
    data: Count | None = None


class _State(Shape):
    """Of averages only."""

    emas: list[Number]
    layout: Annotated[list[_Tensor], Field(default_factory=list)]
    slices: Annotated[list[_Slice], Field(default_factory=list)]
    kinds: Annotated[list[str], Field(default_factory=list)]
    ema_data: Annotated[dict[str, Count], Field(default_factory=dict)]
    config: dict[str, Any] | None = None
    known: Annotated[dict[str, Any], Field(default_factory=dict)]
    measured: Annotated[dict[str, str], Field(default_factory=dict)]
    pins: Annotated[dict[str, dict[str, Any]], Field(default_factory=dict)]


class _LossScale(Shape):
    value: Number
    dynamic: bool
    good_steps: Count


class _Clock(Shape):
    started_at: Number
    useful: Number
    saved_at: Number


class _Whole(_State):
    """With the vectors."""

    layout: Annotated[list[_Tensor], Field(min_length=1)]
    slices: Annotated[list[_Slice], Field(min_length=1)]


class _Trained(_Whole):
    """What training goes on from."""

    optimizer_step: Count
    loss_scale: _LossScale
    clock: _Clock
    world_size: Annotated[int, Field(gt=0)]
    zero_stage: Count


class _Pin(Shape):
    named: str
    url: str
    weights: str
    step: Count | None = None


class _Origin(Shape):
    id: str
    url: str
    step: Count = 0


class _Run(Shape):
    id: str
    tracking_uri: str
    experiment: str = ""
    name: str | None = None
    url: str | None = None
    origins: Annotated[list[_Origin], Field(default_factory=list)]
    pins: Annotated[dict[str, _Pin], Field(default_factory=dict)]
    committed: Count = 0


class _Claim(Shape):
    host: str = ""
    boot: str = ""
    pid: Count = 0
    started: Number | None = None
    token: str = ""
    job: str | None = None


class _Start(Shape):
    starts: Annotated[list[_Begun], Field(default_factory=list)]
    own: bool = True
    marks: Count = 0
    saved: Annotated[list[Count], Field(default_factory=list)]


HEADER = Document(Shape, Damaged)  # of a safetensors file
COMMIT = Document(_Commit, Damaged)
STATE = Document(_State, Damaged)
WHOLE = Document(_Whole, Damaged)
TRAINED = Document(_Trained, Damaged)
RUN = Document(_Run, CheckpointError, "without it nobody knows which run this is: bring it back from a copy")
CLAIM = Document(_Claim)
START = Document(_Start)
