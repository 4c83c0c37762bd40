"""The keys of whom a student follows, and how that one is guided."""

from math import inf
from typing import Annotated

from pydantic import Field

from cmdist.core.guidance import Guidance
from cmdist.sections import Section, content, identity

LARGEST = 100.0  # scale: far above all that is used
Level = Annotated[float, Field(ge=0, le=1e6)]


class Followed(Section):
    """A teacher, with classifier-free guidance if the scale is not 1."""

    kind: Annotated[str, identity("what is learned")]
    teacher: Annotated[str, content("whom the student follows, compared by its weights; exact: the data's closed form")]
    guidance: Annotated[
        float,
        Field(ge=-LARGEST, le=LARGEST),
        identity("w of classifier-free guidance of the teacher, D_null + w (D - D_null); 1: none"),
    ] = 1.0
    guidance_low: Annotated[Level, identity("the noise level above which the teacher is guided")] = 0.0
    guidance_high: Annotated[Level | None, identity("the last noise level at which it is; null: all")] = None


def guidance(keys: Section) -> Guidance:
    """Of the teacher of an objective with these keys; none where there is none."""
    if not isinstance(keys, Followed):
        return Guidance()
    return Guidance(keys.guidance, keys.guidance_low, inf if keys.guidance_high is None else keys.guidance_high)
