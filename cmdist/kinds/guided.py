"""The keys of whom a student follows, and how that one is guided."""

from math import inf
from typing import Annotated

from pydantic import Field

from cmdist.core.guidance import Guidance
from cmdist.sections import Section, content, identity

LARGEST = 100.0  # scale: far above all that is used
Level = Annotated[float, Field(ge=0, le=1e6)]
Scale = Annotated[float, Field(gt=0, le=LARGEST)]


class Followed(Section):
    """A teacher, guided if the scale is not 1 or is drawn: by itself without a class, or by a worse one."""

    kind: Annotated[str, identity("what is learned")]
    teacher: Annotated[str, content("whom the student follows, compared by its weights; exact: the data's closed form")]
    guidance: Annotated[
        float,
        Field(ge=-LARGEST, le=LARGEST),
        identity("w of the teacher's guidance, B + w (D - B), where B is the teacher without a class; 1: none"),
    ] = 1.0
    guidance_range: Annotated[
        tuple[Scale, Scale] | None,
        identity("w is drawn from it for each image, log-uniformly, and network.told_guidance is told; null: fixed"),
    ] = None
    guide: Annotated[
        str | None, content("autoguidance: the run or file of a worse teacher, which is B; null: classifier-free")
    ] = None
    guidance_low: Annotated[Level, identity("the noise level above which the teacher is guided")] = 0.0
    guidance_high: Annotated[Level | None, identity("the last noise level at which it is; null: all")] = None


def guidance(keys: Section) -> Guidance:
    """Of the teacher of an objective with these keys; none where there is none."""
    if not isinstance(keys, Followed):
        return Guidance()
    high = inf if keys.guidance_high is None else keys.guidance_high
    return Guidance(keys.guidance, keys.guidance_low, high, keys.guidance_range)


def guided_wrongly(keys: Section, how: Guidance, told: bool, classes: int) -> str | None:
    """Why an objective with these keys cannot be guided so, in a sentence; None: it can.

    `told`: the student's network takes a scale; `classes` of the data.
    """
    guide, drawn = getattr(keys, "guide", None), how.range
    if told != (drawn is not None):
        return (
            "objective.guidance_range tells the student the scale: it needs network.told_guidance true"
            if drawn
            else "network.told_guidance takes a scale of guidance: it needs objective.guidance_range"
        )
    if drawn is not None and (how.scale != 1.0 or not drawn[0] <= 1.0 <= drawn[1] or drawn[0] == drawn[1]):
        return "objective.guidance_range must be [low, high] around 1, and objective.guidance, a fixed scale, 1"
    if guide is not None and how.none:
        return "objective.guide is what objective.guidance guides away from: a scale other than 1 is needed"
    if guide is None and not how.none and not classes:
        return "objective.guidance guides towards classes: it needs data.classes above 0"
    if how.none and (how.low > 0 or how.high < inf):
        return "objective.guidance_low and guidance_high limit objective.guidance, which is 1: none"
    if how.low >= how.high:
        return f"objective.guidance_low ({how.low:g}) must be below guidance_high ({how.high:g})"
    return None
