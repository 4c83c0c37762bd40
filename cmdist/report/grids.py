"""What a study has measured, as tables, a figure and a page: every number that is told is read from its CSV."""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from cmdist.errors import ConfigError
from cmdist.report import drawing, tables
from cmdist.report.drawing import Theme
from cmdist.report.tables import Row, Table

_NUMBER = re.compile(r"\{\{(median|low|high|ratio): ([^{}]+)\}\}")
COLOURS = ("exact", "training", "euler", "heun", "other")
DASHES = ("-", "--", ":", "-.")
COSTS = {"images": "images seen", "tflop": "TFLOP of training, counted", "seconds": "seconds of training"}
COST_NOTE = (
    "Each run at the steps of training at which it was measured, in the fewest steps of sampling that it has. The time "
    "is that of the machine that trained it, start and saving included, beside other runs."
)
_OWN = ("seed", "run", "value")  # columns of a row that its group of seeds does not share


def medians(rows: Sequence[Row]) -> list[dict[str, tables.Value]]:
    """A row for each figure, over the seeds: their number, median, lowest and highest; seconds are their median too."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:  # in the order of the rows
        groups.setdefault(_place(row), []).append(row)
    result = []
    for same in groups.values():
        values = [float(row["value"]) for row in same]
        shared = {key: value for key, value in same[0].items() if key not in (*_OWN, "seconds")}
        seconds = statistics.median(float(row["seconds"]) for row in same)
        spread: dict[str, tables.Value] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        result.append({**shared, "seconds": seconds, "seeds": len(same), **spread})
    return result


def _place(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(value) for key, value in row.items() if key not in (*_OWN, "seconds"))


def draw(folder: str, panels: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> None:
    """FOLDER/figure-light.svg and -dark.svg from FOLDER/medians.csv."""
    table = tables.read(folder, "medians")
    width = 9.0 if any(panel["x"] == "group" for panel in panels) else 5.2  # inches
    drawing.save(folder, "figure", [_panel(table, panel, titles) for panel in panels], width=width, height=4.2)


def _panel(table: Table, panel: Mapping[str, Any], titles: Mapping[str, str]) -> Callable[[Axes, Theme], None]:
    def chosen() -> Iterable[dict[str, str]]:
        for row in table:
            if panel["groups"] and row["group"] not in panel["groups"]:
                continue
            if panel["steps"] and row["sampler"] not in panel["steps"]:
                continue
            if all(row.get(key, "") in ("", value) for key, value in panel["where"].items()):
                yield row

    x, by = ({"steps": "sampler"}.get(panel[key], panel[key]) for key in ("x", "by"))

    def plot(ax: Axes, theme: Theme) -> None:
        colours = [theme.method[name] for name in COLOURS]
        rows = [row for row in chosen() if row.get(x)]
        if panel["kind"] == "bars":
            rows = list({(row[x], row[by]): row for row in sorted(rows, key=lambda row: int(row["step"]))}.values())
            rows.sort(key=lambda row: [each[x] for each in table].index(row[x]))
            _bars(ax, theme, rows, x, by, titles)
        else:
            for number, name in enumerate(dict.fromkeys(row[by] for row in rows)):
                points = [row for row in rows if row[by] == name]
                if x not in ("images", "tflop"):  # of each place the last step of training at which it was measured
                    points = list({row[x]: row for row in sorted(points, key=lambda row: int(row["step"]))}.values())
                _curve(ax, points, x, titles.get(name, name), colours[number % 5], DASHES[number // 5 % 4])
            ax.legend()
        ax.set(title=panel["title"], ylabel="Frechet distance")
        if panel["log"]:
            ax.set_yscale("log")
        ax.set_xlabel(
            {"group": "", "images": "images seen", "tflop": "TFLOP, counted", "sampler": "steps of sampling"}.get(x, x)
        )

    return plot


def _curve(ax: Axes, points: Table, x: str, label: str, colour: str, dash: str) -> None:
    try:
        places: list[Any] = [float(row[x]) for row in points]
        order = sorted(range(len(points)), key=lambda i: places[i])
    except ValueError:  # titles of an axis, in the study's order
        places, order = [row[x] for row in points], list(range(len(points)))
    middle = [float(points[i]["median"]) for i in order]
    below = [float(points[i]["median"]) - float(points[i]["low"]) for i in order]
    above = [float(points[i]["high"]) - float(points[i]["median"]) for i in order]
    ax.errorbar(
        [places[i] for i in order], middle, [below, above], label=label, color=colour, linestyle=dash, marker="o",
        markersize=4, capsize=3,
    )  # fmt: skip
    if x == "sampler":
        ax.set_xticks(sorted({*ax.get_xticks(), *places} & set(places)))


def _bars(ax: Axes, theme: Theme, rows: Table, x: str, by: str, titles: Mapping[str, str]) -> None:
    """A bar for each (x, by), grouped by x."""
    colours = [theme.method[name] for name in COLOURS]
    names, series = list(dict.fromkeys(row[x] for row in rows)), list(dict.fromkeys(row[by] for row in rows))
    width = 0.8 / max(len(series), 1)
    for number, one in enumerate(series):
        own = [row for row in rows if row[by] == one]
        label = f"{one} step{'s' * (one != '1')}" if by == "sampler" else titles.get(one, one)
        places = [names.index(row[x]) + (number - (len(series) - 1) / 2) * width for row in own]
        values = [float(row["median"]) for row in own]
        errors = [
            [v - float(row["low"]) for v, row in zip(values, own, strict=True)],
            [float(row["high"]) - v for v, row in zip(values, own, strict=True)],
        ]
        ax.bar(places, values, width * 0.9, yerr=errors, label=label, color=colours[number % 5], ecolor=theme.soft)
    ax.set_xticks(range(len(names)), [titles.get(name, name) for name in names], rotation=45, ha="right")
    if len(series) > 1:
        ax.legend()


def draw_costs(folder: str, axes: Sequence[str], titles: Mapping[str, str]) -> None:
    """FOLDER/costs-light.svg and -dark.svg from FOLDER/medians.csv: a curve for each place in the grid."""
    table = tables.read(folder, "medians")
    drawing.save(folder, "costs", [_cost(table, axes, titles, cost) for cost in COSTS], width=4.6, height=5.0)


def _cost(table: Table, axes: Sequence[str], titles: Mapping[str, str], cost: str) -> drawing.Panel:
    """Curves of the places of the grid against a cost."""

    def plot(ax: Axes, theme: Theme) -> None:
        colours = [theme.method[name] for name in COLOURS]
        places: dict[tuple[str, ...], Table] = {}
        for row in table:
            places.setdefault((row["group"], *(row.get(axis, "") for axis in axes)), []).append(row)
        for number, (key, points) in enumerate(places.items()):
            fewest = min((row["sampler"] for row in points), key=lambda s: int(s) if s.isdigit() else 99)
            points = sorted((row for row in points if row["sampler"] == fewest), key=lambda row: float(row[cost]))
            label = " ".join([titles.get(key[0], key[0]), *(value for value in key[1:] if value)])
            middle = [float(row["median"]) for row in points]
            spread = [
                [m - float(row["low"]) for m, row in zip(middle, points, strict=True)],
                [float(row["high"]) - m for m, row in zip(middle, points, strict=True)],
            ]
            dash = DASHES[number // 5 % 4]
            ax.errorbar(
                [float(row[cost]) for row in points], middle, spread, label=label, color=colours[number % 5],
                linestyle=dash, marker="o", markersize=4, capsize=3,
            )  # fmt: skip
        ax.set(title=f"against {COSTS[cost]}", ylabel="Frechet distance", yscale="log")
        ax.set_xlabel(COSTS[cost])
        if cost == list(COSTS)[-1]:
            ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1.0))

    return plot


def filled(text: str, folder: str) -> str:
    """A text whose {{median: GROUP AXIS=VALUE SAMPLER}} (or low, high; step=N for an earlier step), and whose
    {{ratio: A / B}} of two medians, are read from FOLDER/medians.csv. Raises ConfigError if there is no such number.
    """
    table = tables.read(folder, "medians")

    def number(match: re.Match[str]) -> str:
        what, place = match.groups()
        if what == "ratio":
            above, _, below = place.partition(" / ")
            return tables.shown(float(_one(table, above, "median")) / float(_one(table, below, "median")))
        return _one(table, place, what)

    return _NUMBER.sub(number, text)


def _one(table: Table, place: str, column: str) -> str:
    group, *words = place.split()
    where = dict(word.split("=", 1) for word in words if "=" in word)
    samplers = [word for word in words if "=" not in word]
    rows = [row for row in table if row["group"] == group and all(row.get(k) == v for k, v in where.items())]
    rows = [row for row in rows if not samplers or row["sampler"] == samplers[0]]
    if "step" not in where:
        rows = [row for row in rows if row["step"] == max((r["step"] for r in rows), key=int)]
    if len(rows) != 1:
        raise ConfigError(f"the page names '{place}', of which the study has {len(rows)} figures")
    return rows[0][column]


def markdown(folder: str, axes: Sequence[str], titles: Mapping[str, str]) -> str:
    """The table of a page, with the medians in bold."""
    head, *rows = cells(folder, axes, titles)
    first, last = 1 + len(axes), len(head) - 3  # the columns of figures
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        bold = [re.sub(r"^(\S+)", r"**\1**", value) for value in row[first:last]]
        lines.append(f"| {' | '.join([*row[:first], *bold, *row[last:]])} |")
    return "\n".join(lines)


def cells(folder: str, axes: Sequence[str], titles: Mapping[str, str]) -> list[list[str]]:
    """A head, and a row for each place in the grid at its last step: a column for each number of steps of sampling, as
    median (lowest - highest), then the costs.
    """
    table = tables.read(folder, "medians")
    places: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in table:
        of_place = places.setdefault((row["group"], *(row.get(axis, "") for axis in axes)), {})
        if row["sampler"] not in of_place or int(row["step"]) >= int(of_place[row["sampler"]]["step"]):
            of_place[row["sampler"]] = row
    samplers = sorted({row["sampler"] for row in table}, key=lambda s: (s == "heun", int(s) if s.isdigit() else 0))
    names = ["heun (ODE)" if s == "heun" else f"{s} step{'s' if s != '1' else ''}" for s in samplers]
    result = [["run", *axes, *names, "images", "TFLOP", "seconds"]]
    for (group, *values), by_sampler in places.items():
        any_row = next(iter(by_sampler.values()))
        figures = [_spread(by_sampler.get(sampler)) for sampler in samplers]
        cost = [f"{int(any_row['images']):,}", any_row["tflop"], f"{float(any_row['seconds']):.0f}"]
        result.append([titles.get(group, group), *values, *figures, *cost])
    return result


def _spread(row: Mapping[str, str] | None) -> str:
    if row is None:
        return ""
    return f"{row['median']} ({row['low']} - {row['high']})" if int(row["seeds"]) > 1 else row["median"]
