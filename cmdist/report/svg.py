"""Line charts as inline SVG whose colours are CSS variables, so that a page may be light or dark:
no scripts, no fonts, no files.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from cmdist.report.markup import tag

Point = tuple[float, float]

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 36
FAR = 1e100  # what is farther from 1, or from 0 on a linear axis, has no place in a chart
MOST = 300  # points of a curve
COLOURS = 8  # --c0 ... --c7 of the page
_DASHES = ("", "6 3", "2 3")  # after COLOURS series the same colours come again, dashed


@dataclass(frozen=True)
class Series:
    """A curve; `number` gives its colour and marker, `steps` draws the value until the next one,
    `marks` are points to be marked.
    """

    name: str
    number: int
    points: Sequence[Point]
    steps: bool = False
    marks: Sequence[Point] = field(default=())


def short(value: float) -> str:
    """A number in at most about five characters: 0.00031, 0.25, 14.6, 465, 12.5k, 3.2M."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not finite"
    size = abs(value)
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit * 0.9995:
            return f"{value / (1e3 if suffix == 'k' else unit):.3g}{suffix}"
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 1e-4:
        return f"{value:.3g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between low and high, with 2 and 5 where there are few."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades <= 2.2 else (1,)
    every = max(1, math.ceil(decades / 6)) if len(steps) == 1 else 1
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in exponents if e % every == 0 for m in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def _ticks(low: float, high: float, log: bool) -> list[float]:
    ticks = log_ticks(low, high) if log else []
    return ticks if len(ticks) > 2 else linear_ticks(low, high)


def thin(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """At most `most` points: means of neighbours, at the last one's x."""
    size = -(-len(points) // most)
    groups = (
        [points[first : first + size] for first in range(0, len(points), size)] if size > 1 else [[p] for p in points]
    )
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    y_log: bool = False,
    x_log: bool = False,
    form: Callable[[float], str] = short,
) -> Markup:
    """A chart as an svg element; "" without points. What cannot be drawn (not finite, beyond FAR, or not above 0 on a
    log axis) is left out.
    """
    drawable = [(s, [p for p in s.points if _fits(p[0], x_log) and _fits(p[1], y_log)]) for s in series]
    drawable = [(s, points) for s, points in drawable if points]
    if not drawable:
        return Markup("")
    xs, ys = zip(*(p for _, points in drawable for p in points), strict=True)
    x_low, x_high = (min(xs), max(xs)) if x_log else (min(0.0, *xs), 1.02 * max(xs) or 1.0)
    y_low, y_high = _range(min(ys), max(ys), y_log)
    across = _scale(x_low, x_high, LEFT + 4, WIDTH - RIGHT, x_log)
    up = _scale(y_low, y_high, HEIGHT - BOTTOM, TOP, y_log)
    parts = []
    for tick in _ticks(y_low, y_high, y_log):
        y = up(tick)
        parts.append(_line("grid", LEFT, WIDTH - RIGHT, y, y))
        parts.append(tag("text", short(tick), x=LEFT - 6, y=f"{y + 3.5:.1f}", text_anchor="end"))
    for tick in _ticks(x_low, x_high, x_log):
        x = across(tick)
        parts.append(_line("tick", x, x, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4))
        parts.append(tag("text", short(tick), x=f"{x:.1f}", y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(_line("axis", LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", x_label, class_="label", x=middle, y=HEIGHT - 5, text_anchor="middle"))
    parts += [_curve(s, points, across, up, form) for s, points in drawable]
    frame = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria_label": title}
    return tag("svg", *parts, class_="chart", **frame, xmlns="http://www.w3.org/2000/svg")


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return tag("line", class_=kind, x1=f"{x1:.1f}", x2=f"{x2:.1f}", y1=f"{y1:.1f}", y2=f"{y2:.1f}")


def marker(number: int, x: float, y: float, size: float = 3.6) -> Markup:
    """A small shape for series `number`, another one for each colour."""
    shape, s = number % 4, size
    if shape == 0:
        return tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{s:.1f}")
    outline = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -1.25 * s), (1.2 * s, 0.9 * s), (-1.2 * s, 0.9 * s)],
        3: [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
    }[shape]
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outline)
    return tag("polygon", points=corners)


def _curve(
    s: Series,
    points: Sequence[Point],
    across: Callable[[float], float],
    up: Callable[[float], float],
    form: Callable[[float], str],
) -> Markup:
    shown = points if s.steps else thin(points)
    places = [(across(x), up(y)) for x, y in shown]
    path = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]
    for x, y in places[1:]:
        path.append(f"H{x:.1f}V{y:.1f}" if s.steps else f"L{x:.1f} {y:.1f}")
    dash = _DASHES[s.number // COLOURS % len(_DASHES)]
    drawn = [tag("path", d="".join(path), stroke_dasharray=dash or None)] if len(places) > 1 else []
    marked = dict.fromkeys([*s.marks, *(shown if len(shown) <= 12 and not s.steps else [])])
    for x, y in marked:
        tip = tag("title", f"{s.name}: {form(y)} at {short(x)}")
        drawn.append(tag("g", tip, marker(s.number, across(x), up(y), 2.4 if s.steps else 3.6)))
    # what the page's script shows under the pointer: places in the drawing, and texts
    data = ";".join(f"{px:.1f},{py:.1f},{short(x)},{form(y)}" for (px, py), (x, y) in zip(places, shown, strict=True))
    return tag("g", *drawn, class_=f"series c{s.number % COLOURS}", data_name=s.name, data_points=data)


def _fits(value: float, log: bool) -> bool:
    return abs(value) <= FAR and (not log or value >= 1 / FAR)  # never for NaN


def _range(low: float, high: float, log: bool) -> Point:
    if log:
        spread = max(math.log10(high / low) * 0.08, 0.05)
        return low / 10**spread, high * 10**spread
    spread = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (low - spread if low < 0 or low - spread > 0.4 * high else 0.0), high + spread


def _scale(low: float, high: float, start: float, stop: float, log: bool) -> Callable[[float], float]:
    if log:
        bottom, top = math.log10(low), math.log10(high)
        return lambda v: start + (stop - start) * ((math.log10(v) - bottom) / ((top - bottom) or 1.0))
    return lambda v: start + (stop - start) * ((v - low) / ((high - low) or 1.0))


def changes(points: Sequence[Point]) -> list[Point]:
    """The first point, those whose value is another than the one before, and the last."""
    places = [p for before, p in itertools.pairwise(points) if before[1] != p[1]]
    return [*points[:1], *places, *([points[-1]] if len(points) > 1 and points[-1] not in places else [])]


def jumps(points: Sequence[Point]) -> list[Point]:
    """The points at which the value has just changed."""
    return [p for before, p in itertools.pairwise(points) if before[1] != p[1]]
