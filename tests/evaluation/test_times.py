"""The search of times on scores that are known: the minimum, its cost, and what noise does to it."""

import math
import random
from collections.abc import Callable

import pytest

from cmdist.evaluation import times
from cmdist.evaluation.times import bracket, search


def each(score: Callable[[tuple[float, ...], int], float]) -> times.Scores:
    return lambda several, images: [score(given, images) for given in several]


GRID = [80.0 * 0.78**i for i in range(40)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 38, 149, 199])
def test_every_minimum_of_a_unimodal_score_is_bracketed(count: int) -> None:
    for best in range(count):
        asked: set[int] = set()

        def score(place: int, best: int = best, asked: set[int] = asked) -> float:
            asked.add(place)
            return abs(place - best) ** 1.5

        places = bracket(lambda places: [score(place) for place in places], count)
        assert best in places and len(places) <= times.LAST and places.start >= 0 and places.stop <= count
        assert not asked & {0, count - 1} or count <= times.LAST + 1
        assert len(asked) <= 2 * math.log(max(count, 2), 1.5) + 2


def test_times_are_added_one_by_one_and_the_earlier_stay() -> None:
    def score(given: tuple[float, ...], images: int) -> float:
        assert list(given) == sorted(set(given), reverse=True) and given[0] == 80.0 and given[-1] > GRID[-1]
        wanted = [2.0, 0.5][: len(given) - 1]
        levels = sorted(given[1:], reverse=True)
        return sum(abs(math.log(a / b)) for a, b in zip(levels, wanted, strict=True))

    found = search(each(score), GRID, 3, few=100, many=1000)
    nearest = [min(GRID, key=lambda level, to=to: abs(math.log(level / to))) for to in (2.0, 0.5)]
    assert found.times == (80.0, *nearest)
    assert [len(probes) for probes in found.probes] == [len(set(probes)) for probes in found.probes]
    last = {probe.time for probe in found.probes[0] if probe.images == 1000}
    assert len(last) == times.LAST and nearest[0] in last


def test_with_noise_the_best_that_was_seen_is_taken() -> None:
    """The plain search returns one that it knows to be worse in 15 to 46 % of the cases."""
    draw = random.Random(0)
    for _ in range(200):
        seen: dict[tuple[tuple[float, ...], int], float] = {}

        def score(given: tuple[float, ...], images: int, seen: dict = seen) -> float:
            value = (math.log(given[1] / 1.5)) ** 2 + draw.gauss(0, 0.05)
            return seen.setdefault((given, images), value)

        found = search(each(score), GRID, 2, few=10, many=20)
        best = min(value for (_, images), value in seen.items() if images == 20)
        assert seen[found.times, 20] == best
