"""What a page asks for, by shape; nothing is converted, and nothing else is taken."""

import base64
import binascii
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cmdist.errors import ConfigError
from cmdist.system import typed

MOST = 16  # pictures at once
SEED = 2**53  # from here on the numbers of a browser have gaps
Seed = Annotated[int, Field(ge=0, lt=SEED)]
Level = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=-100, le=100)]  # of guidance
Slot = Literal["first", "second"]


class Message(BaseModel):
    """A message of the page."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Describe(Message):
    """Say what model is open."""

    slot: Slot


class Open(Message):
    """Open another model: a run folder, or with `weights` a configuration file."""

    slot: Slot
    run: str
    weights: str | None = None


class Sampling(Message):
    """How images are made."""

    slot: Slot = "first"
    steps: Annotated[str, Field(pattern=r"^(heun|[1-9][0-9]?)$")]
    times: Annotated[list[Level], Field(max_length=MOST)]
    label: int | None = None
    guidance: Scale = 1.0


class Sample(Sampling):
    """Make images of seeds that follow each other."""

    seed: Seed
    count: Annotated[int, Field(ge=1, le=MOST)]


class Between(Sampling):
    """Make images on the way between two seeds."""

    seed: Seed
    other: Seed
    shares: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=MOST)]


class Upload(Message):
    """Make a file into a picture of the model's size and channels."""

    name: str
    content: str  # base64
    fit: bool


class Edit(Message):
    """Edit a picture; `mask` is white where it is generated."""

    task: Literal["inpaint", "colourise", "superresolve", "stroke", "denoise"]
    picture: str  # base64
    mask: str | None = None  # base64
    seed: Seed
    count: Annotated[int, Field(ge=1, le=MOST)]
    times: Annotated[list[Level], Field(max_length=100)] | None = None
    label: int | None = None
    guidance: Scale = 1.0
    patch: int = 4
    sigma: Level = 0.5
    add_noise: bool = False


M = TypeVar("M", bound=Message)


def message(shape: type[M], tree: Any) -> M:
    """`tree` as a message. Raises ConfigError for another shape."""
    try:
        return shape.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(typed.problem(error)) from error


def content_of(text: str) -> bytes:
    """The bytes of base64. Raises ConfigError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("the picture did not arrive whole") from error
