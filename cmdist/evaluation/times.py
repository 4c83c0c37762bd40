"""The noise levels of multistep sampling that score best, one added at a time (paper, section 3): a ternary search on a
grid, which takes the score for unimodal, and everything that it has seen decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LAST = 5  # candidates left that are all looked at: there the score is too flat and too noisy for a search
# of each of several falling times, with so many images: the lower the better
Scores = Callable[[Sequence[tuple[float, ...]], int], Sequence[float]]


class Probe(NamedTuple):
    """A time that was tried beside those that were fixed before, with how many images, and its score."""

    time: float
    images: int
    score: float


@dataclass(frozen=True)
class Found:
    """Falling `times`, sigma_max among them, and what was seen for each that was added, in the order of trying."""

    times: tuple[float, ...]
    probes: tuple[tuple[Probe, ...], ...]


def bracket(scores: Callable[[Sequence[int]], Sequence[float]], count: int) -> range:
    """The places, at most LAST, between which a unimodal score of the places 0 ... count - 1 has its minimum; the
    first and the last place are not asked for. Two places are asked for at a time.
    """
    low, high = -1, count  # the minimum lies between
    while high - low - 1 > LAST:
        third = (high - low) // 3
        left, right = low + third, high - third
        of_left, of_right = scores((left, right))
        if of_left <= of_right:
            high = right
        else:
            low = left
    return range(low + 1, high)


def search(scores: Scores, grid: Sequence[float], steps: int, few: int, many: int) -> Found:
    """Times for `steps` evaluations, from sigma_max = grid[0] on: candidates are the levels of the falling `grid`
    between its ends. Each search brackets with `few` images; of the last bracket every candidate is scored with `many`,
    and the best of those is taken.
    """
    times: tuple[float, ...] = (grid[0],)
    everything: list[tuple[Probe, ...]] = []
    for _ in range(steps - 1):
        candidates = [level for level in grid[1:-1] if level not in times]
        tried: list[Probe] = []

        def scored(
            places: Sequence[int],
            images: int = few,
            times: tuple[float, ...] = times,
            candidates: Sequence[float] = candidates,
            tried: list[Probe] = tried,
        ) -> list[float]:
            seen = {probe.time: probe.score for probe in tried if probe.images == images}
            new = [candidates[place] for place in places if candidates[place] not in seen]
            asked = [tuple(sorted((*times, time), reverse=True)) for time in new]
            for time, value in zip(new, scores(asked, images) if asked else (), strict=True):
                tried.append(Probe(time, images, value))
                seen[time] = value
            return [seen[candidates[place]] for place in places]

        last = bracket(scored, len(candidates))
        best = min(zip(scored(last, many), last, strict=True))[1]
        times = tuple(sorted((*times, candidates[best]), reverse=True))
        everything.append(tuple(tried))
    return Found(times, tuple(everything))
