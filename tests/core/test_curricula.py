"""N(k) and mu(k): golden values for the paper's three data sets and improved CT, and their formulas in exact
arithmetic.
"""

from decimal import Decimal, localcontext
from math import ceil

import pytest

from cmdist.core.curricula import Constant, Doubling, Paper, Point

RECIPES = {
    "cifar10": (2, 150, 0.9, 800_000),
    "imagenet64": (2, 200, 0.95, 800_000),
    "lsun256": (2, 150, 0.95, 1_000_000),
}

# computed with 60 digits from the paper's formulas: k -> N, mu of the paper, mu of OpenAI's code
GOLDEN = {
    "cifar10": {
        0: (2, 0.9, 0.81),
        1: (3, 0.9321697517861576, 0.9),
        175: (3, 0.9321697517861576, 0.9),
        176: (4, 0.9486832980505137, 0.9321697517861576),
        421: (4, 0.9486832980505137, 0.9321697517861576),
        422: (5, 0.9587315155141827, 0.9486832980505137),
        736: (5, 0.9587315155141827, 0.9486832980505137),
        737: (6, 0.9654893846056297, 0.9587315155141827),
        400_000: (107, 0.9980325824752018, 0.9980140403749149),
        799_999: (151, 0.9986054697436056, 0.9985961794038429),
        800_000: (151, 0.9986054697436056, 0.9985961794038429),
    },
    "imagenet64": {
        0: (2, 0.95, 0.9025),
        1: (3, 0.9663825297815459, 0.95),
        176: (4, 0.9746794344808963, 0.9663825297815459),
        422: (6, 0.9830475724915585, 0.9796917302662298),
        737: (7, 0.9854516381895564, 0.9830475724915585),
        400_000: (143, 0.9992828685290813, 0.9992778201314769),
        800_000: (201, 0.9994897491835649, 0.9994871985837377),
    },
    "lsun256": {
        0: (2, 0.95, 0.9025),
        1: (3, 0.9663825297815459, 0.95),
        176: (3, 0.9663825297815459, 0.95),
        422: (4, 0.9746794344808963, 0.9663825297815459),
        737: (5, 0.9796917302662298, 0.9746794344808963),
        500_000: (107, 0.9990417062908473, 0.9990326701581371),
        1_000_000: (151, 0.9993208493446613, 0.9993163232217092),
    },
}
ALL = [
    Constant(18, 0.95),
    *(Paper(*recipe) for recipe in RECIPES.values()),
    Paper(2, 150, 0.9, 800_000, "code"),
    Doubling(10, 1280, 400_000),
    Doubling(2, 7, 100),
]


@pytest.mark.parametrize(("data", "k"), [(data, k) for data, values in GOLDEN.items() for k in values])
def test_the_papers_golden_values(data: str, k: int) -> None:
    n, mu_paper, mu_code = GOLDEN[data][k]
    assert Paper(*RECIPES[data])(k).n_timesteps == n
    assert Paper(*RECIPES[data])(k).mu == pytest.approx(mu_paper, rel=1e-14)
    assert Paper(*RECIPES[data], mu_form="code")(k) == Point(n, pytest.approx(mu_code, rel=1e-14))


@pytest.mark.parametrize(
    "recipe", [*RECIPES.values(), (2, 1, 0.9, 7), (10, 20, 0.9, 1), (3, 40, 0.5, 97), (2, 150, 0.9, 3 * 7**9)]
)
def test_n_jumps_exactly_where_the_formula_does(recipe: tuple[int, int, float, int]) -> None:
    """N(k) > n exactly when k/K ((s1+1)^2 - s0^2) + s0^2 > n^2: compared in whole numbers on both sides of every
    jump.
    """
    s0, s1, _, total = recipe
    curriculum, span = Paper(*recipe), (s1 + 1) ** 2 - s0**2
    for n in range(s0, s1 + 1):
        last = (n * n - s0 * s0) * total // span if span else total  # the last k with N(k) <= n
        assert curriculum(last).n_timesteps <= n
        if last < total:
            assert curriculum(last + 1).n_timesteps > n
    with localcontext() as context:
        context.prec = 60
        for k in range(0, total + 1, max(1, total // 500)):
            root = (Decimal(k) / Decimal(total) * span + s0**2).sqrt()
            if abs(root - round(root)) > Decimal("1e-40"):  # else the rounding of 60 digits would decide
                assert curriculum(k).n_timesteps == ceil(root - 1) + 1


@pytest.mark.parametrize("mu_form", ["paper", "code"])
@pytest.mark.parametrize("data", RECIPES)
def test_after_the_last_step_nothing_grows(data: str, mu_form) -> None:
    curriculum = Paper(*RECIPES[data], mu_form=mu_form)
    end = curriculum(RECIPES[data][3])
    assert end.n_timesteps == RECIPES[data][1] + 1
    for beyond in (1, 2, 1000, RECIPES[data][3]):
        assert curriculum(RECIPES[data][3] + beyond) == end


@pytest.mark.parametrize("curriculum", ALL, ids=repr)
def test_n_and_mu_never_fall_and_stay_in_range(curriculum) -> None:
    total = getattr(curriculum, "total_steps", 1000)
    points = [curriculum(k) for k in sorted({*range(0, 2 * total, max(1, total // 400)), total, 10**9})]
    for a, b in zip(points, points[1:], strict=False):
        assert 2 <= a.n_timesteps <= b.n_timesteps
        assert 0 <= a.mu <= b.mu < 1
    assert points[-1] == curriculum(total)  # at K the end is reached


@pytest.mark.parametrize(
    ("k", "n"),
    [
        *[
            (0, 11),
            (49_999, 11),
            (50_000, 21),
            (99_999, 21),
            (100_000, 41),
            (150_000, 81),
            (200_000, 161),
            (250_000, 321),
        ],
        *[
            (299_999, 321),
            (300_000, 641),
            (349_999, 641),
            (350_000, 1281),
            (399_999, 1281),
            (400_000, 1281),
            (10**12, 1281),
        ],
    ],
)
def test_doubling_golden_values(k: int, n: int) -> None:
    """Improved CT on CIFAR-10: s0 10, s1 1280, K 400,000, so K' = 400,000 / 8."""
    assert Doubling(10, 1280, 400_000)(k) == Point(n, 0.0)


def test_doubling_stops_at_s1_when_it_is_no_power_times_s0() -> None:
    # K' = floor(100 / (log2(3) + 1)) = 38
    assert [Doubling(2, 7, 100)(k).n_timesteps for k in (0, 37, 38, 75, 76, 100)] == [3, 3, 5, 5, 8, 8]
    # fewer steps than stages: one step a stage
    assert [Doubling(1, 1024, 4)(k).n_timesteps for k in (0, 1, 2, 11)] == [2, 3, 5, 1025]


def test_constant() -> None:
    assert Constant(18)(0) == Constant(18)(10**9) == Point(18, 0.0)
    assert Constant(40, 0.95)(7) == Point(40, 0.95)


@pytest.mark.parametrize("arguments", [(1, 0.5), (18, 1.0), (18, -0.1)])
def test_an_impossible_constant_curriculum_is_refused(arguments: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"needs n_timesteps >= 2 and 0 <= mu < 1, not"):
        Constant(*arguments)


@pytest.mark.parametrize(
    "arguments", [(1, 150, 0.9, 10), (152, 150, 0.9, 10), (2, 150, 0.0, 10), (2, 150, 1.0, 10), (2, 150, 0.9, 0)]
)
def test_an_impossible_paper_curriculum_is_refused(arguments: tuple[int, int, float, int]) -> None:
    with pytest.raises(ValueError, match=r"needs 2 <= s0 <= s1 \+ 1, 0 < mu0 < 1 and total_steps >= 1"):
        Paper(*arguments)


@pytest.mark.parametrize("arguments", [(0, 10, 10), (20, 10, 10), (10, 1280, 0)])
def test_an_impossible_doubling_curriculum_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"needs 1 <= s0 <= s1 and total_steps >= 1"):
        Doubling(*arguments)
