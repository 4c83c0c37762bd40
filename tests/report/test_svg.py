import re
import xml.etree.ElementTree as ET

import pytest

from cmdist.report import charts
from cmdist.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Series,
    changes,
    chart,
    jumps,
    linear_ticks,
    log_ticks,
    short,
    thin,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (0, "0"),
            (0.25, "0.25"),
            (14.62, "14.6"),
            (465.4, "465"),
            (1250, "1250"),
            (12500, "12.5k"),
            (800000, "800k"),
            (3.2e6, "3.2M"),
        ],
        *[
            (3.1e-4, "0.00031"),
            (2e-5, "2e-5"),
            (-1.5e-6, "-1.5e-6"),
            (1.2e9, "1.2G"),
            (999999, "1M"),
            (float("nan"), "not finite"),
        ],
    ],
)
def test_short(value, text):
    assert short(value) == text


def test_ticks_are_round_and_inside():
    assert linear_ticks(0, 1250) == [0, 250, 500, 750, 1000, 1250]
    assert linear_ticks(0.0, 0.031) == pytest.approx([0, 0.01, 0.02, 0.03])
    assert log_ticks(8, 600) == [10, 20, 50, 100, 200, 500]
    assert log_ticks(1e-4, 10) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1, 10])


def test_thin_keeps_the_mean_and_the_last_place():
    points = [(float(k), float(k % 2)) for k in range(1, 1001)]
    found = thin(points)
    assert len(found) <= 300 and found[-1][0] == 1000 and all(0.2 <= y <= 0.8 for _, y in found)
    assert thin(points[:300]) == points[:300]


def test_changes_and_jumps():
    points = [(1.0, 2.0), (2.0, 2.0), (3.0, 5.0), (4.0, 5.0)]
    assert changes(points) == [(1, 2), (3, 5), (4, 5)] and jumps(points) == [(3, 5)]
    assert changes(points[:1]) == points[:1] and changes([]) == []


def places(svg: str) -> list[tuple[float, float]]:
    (path,) = [e.attrib["d"] for e in ET.fromstring(svg).iter() if e.tag.endswith("path")]
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]


def test_a_curve_lies_where_its_axes_say():
    """Against the places of the ticks, read back from the drawing."""
    svg = chart("t", [Series("a", 0, [(0, 1), (500, 10), (1000, 100)])], "step", y_log=True)
    texts = {e.text: e.attrib for e in ET.fromstring(svg).iter() if e.tag.endswith("text")}
    found = places(svg)
    assert [y for _, y in found] == pytest.approx([float(texts[t]["y"]) - 3.5 for t in ("1", "10", "100")], abs=0.11)
    assert [x for x, _ in found] == pytest.approx(
        [float(texts[t]["x"]) for t in ("0", "500" if "500" in texts else "400", "1000")], abs=0.11
    ) or (found[1][0] == pytest.approx((found[0][0] + found[2][0]) / 2, abs=0.11))


def test_steps_hold_their_value_until_the_next():
    svg = chart("t", [Series("N", 1, [(0, 2), (10, 4), (20, 8)], steps=True, marks=[(10, 4), (20, 8)])], "step")
    (path,) = [e.attrib["d"] for e in ET.fromstring(svg).iter() if e.tag.endswith("path")]
    assert re.fullmatch(r"M[\d.]+ [\d.]+(H[\d.]+V[\d.]+){2}", path)
    assert svg.count("<title>") == 2


def test_what_cannot_be_drawn_is_left_out():
    nan = float("nan")
    assert chart("t", [Series("a", 0, [(1, nan), (2, float("inf"))])], "x") == ""
    assert chart("t", [Series("a", 0, [(1, 0.0), (2, -1.0)])], "x", y_log=True) == ""
    assert chart("t", [Series("a", 0, [])], "x") == ""
    found = places(chart("t", [Series("a", 0, [(1, 1.0), (2, nan), (3, 4.0)])], "x"))
    assert len(found) == 2


@pytest.mark.parametrize(
    "points", [[(5, 3.0)], [(1, 2.0), (2, 2.0)], [(0, 0.0), (1, 0.0)], [(1, -5.0), (2, 5.0)], [(3, 1e-9), (4, 2e-9)]]
)
@pytest.mark.parametrize("log", [False, True])
def test_everything_stays_inside_the_drawing(points, log):
    svg = chart("t", [Series("a", 3, points)], "x", y_log=log)
    if not svg:
        assert log and all(y <= 0 for _, y in points)
        return
    (told,) = [e.attrib["data-points"] for e in ET.fromstring(svg).iter() if "data-points" in e.attrib]
    for x, y, *_ in (point.split(",") for point in told.split(";")):
        assert LEFT <= float(x) <= WIDTH - RIGHT and 0 <= float(y) <= HEIGHT - BOTTOM


def test_names_are_escaped():
    svg = chart('<"t">', [Series('a<b>&"c"', 0, [(1, 1)])], "x<y")
    (group,) = [e for e in ET.fromstring(svg).iter() if "data-name" in e.attrib]
    assert group.attrib["data-name"] == 'a<b>&"c"' and "<b>" not in svg


def test_the_ninth_curve_differs_from_the_first():
    one, nine = (chart("t", [Series("a", n, [(0, 1), (1, 2)])], "x") for n in (0, 8))
    assert "stroke-dasharray" not in one and "stroke-dasharray" in nine


@pytest.mark.parametrize("value", [1e300, 1e-320, 1.7e308, -1e300, float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("log", [False, True])
def test_values_without_a_place_in_a_chart_are_left_out(value: float, log: bool) -> None:
    """Figures of a run that went wrong: the others are drawn as if they were not there."""
    good = [(1.0, 2.0), (2.0, 3.0)]
    usual = chart("t", [Series("a", 0, good)], "step", y_log=log, x_log=log)
    spoilt = chart("t", [Series("a", 0, [*good, (3.0, value)])], "step", y_log=log, x_log=log)
    assert (spoilt == usual) == (not (value == 0.0 and not log) and not (value == 1e-320 and not log))
    assert charts.comparison([("a", [(1, 2.0), (2, value)])], [("a", {"fd_1step": value})])[:4] == b"\x89PNG"
