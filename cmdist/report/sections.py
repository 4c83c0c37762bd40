"""Several runs as one HTML file that needs nothing else: curves, figures, samples, differences, protocols."""

import base64
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup
from torch import Tensor

from cmdist.errors import CmdistError
from cmdist.evaluation import pictures
from cmdist.report import comparison
from cmdist.report.comparison import Column, Row
from cmdist.report.details import configurations, places, protocols
from cmdist.report.elements import legend, section, table, titled
from cmdist.report.markup import join, tag
from cmdist.report.page import page
from cmdist.report.svg import COLOURS, Point, Series, changes, chart, jumps, short
from cmdist.system import storage

_SIGMA = r"(\d+(?:\.\d*)?(?:e[+-]?\d{1,2})?)"
LEVEL = re.compile(rf"(.+)_sigma_{_SIGMA}_{_SIGMA}")  # a quantity between two noise levels
GLANCE = re.compile(r"step-(\d+)-([^-]+)\.npz")
NUMBERS = {"n_timesteps": ("N(k), noise levels", "N(k)"), "mu": ("μ(k), decay of the target", "mu(k)")}
STRIP = 10  # images of a row of samples over training


def render(rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str]) -> Markup:
    """The report as text of an HTML file."""
    title = ", ".join(row.name for row in rows) if len(rows) <= 4 else f"{len(rows)} runs"
    experiments = sorted({row.params.get("tracking.experiment", "") for row in rows} - {""})
    of = f"Experiment {', '.join(experiments)} · " if experiments else ""
    subtitle = f"{of}{time.strftime('%Y-%m-%d %H:%M')}"
    body = [
        tag("h1", "Comparison of " if len(rows) > 1 else "Run ", title) + tag("p", subtitle),
        tag("div", *(legend(n, row.name) for n, row in enumerate(rows)), class_="keys"),
        _figures(rows, columns, notes),
        _quality(rows, columns),
        _samples(rows),
        _training(rows),
        _noise_levels(rows),
        _over_training(rows),
        configurations(rows),
        protocols(rows),
        places(rows),
        tag(
            "footer",
            "Made by pipelines/compare.py of cmdist. Figures of different protocols never share a column or a curve.",
        ),
    ]
    return page(title, join((part for part in body if part), "\n"))


def duration(seconds: float) -> str:
    """E.g. 95 s, 13 min, 4.2 h, 6.1 days."""
    for size, unit in ((86400 * 3, "days"), (7200, "h"), (180, "min")):
        if seconds >= size:
            return f"{short(seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit])} {unit}"
    return f"{seconds:.0f} s"


def _figures(rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str]) -> Markup:
    head = [tag("th", "run"), tag("th", "objective", class_="text")]
    for column in columns:
        arrow = "↑" if comparison.higher_is_better(column.metric) else "↓"
        ns = sorted({f.params.get("protocol.n", "?") for r in rows if (f := r.newest(column.metric, column.protocol))})
        head.append(tag("th", f"{column.title} {arrow}", tag("br"), tag("small", f"n = {', '.join(ns)}")))
    head += [tag("th", name) for name in ("step", "EMA", "images seen", "wall time", "device-hours")]
    body = []
    for number, row in enumerate(rows):
        cells = [tag("th", legend(number, row.name)), tag("td", row.objective.replace("_", " "), class_="text")]
        for column in columns:
            figure = row.newest(column.metric, column.protocol)
            if figure is None:
                cells.append(tag("td", "–", class_="none"))
                continue
            best = figure.value == comparison.best(rows, column)
            text = tag("b", figure.text, class_="best") if best else figure.text
            letter = comparison.protocols(rows)[figure.protocol]
            mark = [" ", tag("small", f"({letter})")] if column.protocol is None and letter != "A" else []
            cells.append(tag("td", text, *mark))
        last = max((points[-1][0] for points in row.histories.values() if points), default=0)
        wall, hours = row.wall_seconds, row.device_hours
        values = [
            row.step,
            row.ema,
            short(row.images_at(last)) if last else "–",
            "–" if wall is None else duration(wall),
        ]
        cells += [tag("td", v) for v in [*values, "–" if hours is None else short(hours)]]
        body.append(cells)
    foot = tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else Markup("")
    return section(
        "Figures",
        f"Of the newest evaluated checkpoint{'; the best of a column is underlined' if len(rows) > 1 else ''}.",
        table(head, body) + foot,
    )


def _grid(cards: Iterable[tuple[str, Markup]], kind: str = "grid") -> Markup:
    drawn = [
        tag("div", tag("h3", title) if title else "", content, class_="card") for title, content in cards if content
    ]
    return tag("div", *drawn, class_=kind) if drawn else Markup("")


def _quality(rows: Sequence[Row], columns: Sequence[Column]) -> Markup:
    letters, parts = comparison.protocols(rows), list[Markup]()
    shown = {(f.metric, f.protocol) for row in rows for f in row.figures}
    longest = max((s for row in rows for f in row.figures if (s := row.seconds_at(f.step)) is not None), default=0.0)
    unit, size = next(
        (u, s)
        for u, s, least in (("days", 86400, 259200), ("hours", 3600, 7200), ("minutes", 60, 180), ("seconds", 1, 0))
        if longest >= least
    )
    axes: list[tuple[str, Callable[[Row, int], float | None]]] = [
        ("images seen", lambda row, step: row.images_at(step)),
        (f"wall time ({unit})", lambda row, step: None if (s := row.seconds_at(step)) is None else s / size),
        ("device-hours", lambda row, step: row.device_hours_at(step)),
    ]
    for metric, protocol in sorted(shown, key=lambda pair: (comparison.order(pair[0]), list(letters).index(pair[1]))):
        some = next(f for row in rows for f in row.figures if (f.metric, f.protocol) == (metric, protocol))
        name = f"{comparison.title(metric)}, {some.params.get('protocol.n', '?')} images" + (
            f" ({letters[protocol]})" if letters[protocol] != "A" else ""
        )
        log = not comparison.higher_is_better(metric)
        cards = []
        for label, place in axes:
            series = []
            for number, row in enumerate(rows):
                points = [
                    (x, f.value)
                    for f in row.figures
                    if (f.metric, f.protocol) == (metric, protocol) and (x := place(row, f.step)) is not None
                ]
                series.append(Series(row.name, number, sorted(points)))
            cards.append(("", chart(f"{name} by {label}", series, label, y_log=log)))
        if drawn := _grid(cards, "grid three"):
            parts.append(tag("h3", name) + drawn)
    return section("Quality over training", "Every evaluated checkpoint, each against what it cost.", join(parts))


def _curves(rows: Sequence[Row], metric: str, steps: bool = False) -> list[Series]:
    curves = []
    for number, row in enumerate(rows):
        points = [(float(k), v) for k, v in row.histories.get(metric, [])]
        marks = jumps(points) if steps else []
        curves.append(
            Series(row.name, number, changes(points) if steps else points, steps, marks if len(marks) <= 40 else [])
        )
    return curves


def _numbers(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """A card for each number that an objective gives its steps: N, mu, a stage."""
    told = {name: None for row in rows for name in row.numbers}  # in the order in which they are told
    cards = list[tuple[str, Markup]]()
    for name in told:
        curves = [series for series in _curves(rows, name, steps=True) if any(value for _, value in series.points)]
        title, short_title = NUMBERS.get(name, (name.replace("_", " "), name))
        values = [value for series in curves for _, value in series.points]
        wide = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
        cards.append((titled(title, "jumps marked"), chart(short_title, curves, "step", y_log=wide)))
    return cards


def _training(rows: Sequence[Row]) -> Markup:
    plots = [
        (titled("Loss", "each objective has its own"), chart("loss", _curves(rows, "loss"), "step", y_log=True)),
        *_numbers(rows),
        (
            titled("Consistency error", "same noise"),
            chart("consistency error", _curves(rows, "consistency_error"), "step", y_log=True),
        ),
        (
            titled("Consistency error", "along the teacher’s ODE"),
            chart(
                "consistency error along the teacher's ODE", _curves(rows, "consistency_error_ode"), "step", y_log=True
            ),
        ),
        (
            titled("Distance to the teacher", "one step, its ODE"),
            chart("teacher distance", _curves(rows, "teacher_distance"), "step", y_log=True),
        ),
        ("Images per second", chart("images per second", _curves(rows, "images_per_second"), "step")),
    ]
    text = (
        "The consistency error is that of neighbours of a fixed grid of noise levels on fixed images and noise, as the "
        "RMS of a pixel: "
        "comparable while N(k) and μ(k) change. Without a target network (μ = 0) there is no curve of μ."
    )
    return section("Training", text, _grid(plots))


def _levels(row: Row, quantity: str) -> list[tuple[float, float, list[Point]]]:
    """(low, high, points) of a quantity between two noise levels, in order."""
    levels = []
    for name, points in row.histories.items():
        if (match := LEVEL.fullmatch(name)) and match[1] == quantity:
            levels.append((float(match[2]), float(match[3]), [(float(k), v) for k, v in points]))
    return sorted(levels)


def _noise_levels(rows: Sequence[Row]) -> Markup:
    """What the losses tell by noise level: the loss, and whatever else an objective tells."""
    told = {match[1] for row in rows for name in row.histories if (match := LEVEL.fullmatch(name))}
    return join(_noise_levels_of(rows, quantity) for quantity in sorted(told, key=lambda name: (name != "loss", name)))


def _noise_levels_of(rows: Sequence[Row], quantity: str) -> Markup:
    title = quantity.replace("_", " ")
    levels = [_levels(row, quantity) for row in rows]
    logarithmic = all(v > 0 for of_row in levels for _, _, points in of_row for _, v in points)  # some are signed
    final = []
    for number, (row, of_row) in enumerate(zip(rows, levels, strict=True)):
        ends = [((low * high) ** 0.5, sum(v for _, v in p[-5:]) / len(p[-5:])) for low, high, p in of_row if p]
        final.append(Series(row.name, number, ends))
    overview = chart(f"{title} by noise level at the end", final, "σ", x_log=True, y_log=logarithmic)
    cards = [(titled("All runs", "mean of the last five points"), overview)]
    for number, (row, of_row) in enumerate(zip(rows, levels, strict=True)):
        series = [Series(f"σ {short(low)} – {short(high)}", n % COLOURS, p) for n, (low, high, p) in enumerate(of_row)]
        drawn = chart(f"{title} of {row.name} by noise level", series, "step", y_log=logarithmic)
        cards.append((legend(number, row.name), tag("div", drawn, class_="levels") if drawn else drawn))
    bounds = [level for of_row in levels for low, high, _ in of_row for level in (low, high)]
    ramp = tag("div", *(tag("i", class_=f"c{n}") for n in range(COLOURS)))
    key = tag("div", f"σ = {short(min(bounds))}", ramp, short(max(bounds)), class_="ramp levels")
    return section(f"{title.capitalize()} by noise level", "", key + _grid(cards))


def _image(images: Tensor, columns: int, alt: str) -> Markup:
    content, kind = pictures.for_page(images, columns)
    data = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return tag("img", alt=alt, loading="lazy", src=data)


def _samples(rows: Sequence[Row]) -> Markup:
    parts = list[Markup]()
    for sampler in sorted({f.sampler for row in rows for f in row.figures}, key=comparison.order):
        cards = []
        for number, row in enumerate(rows):
            own = [f for f in row.figures if f.sampler == sampler]
            if not own:
                continue
            last = max(own, key=lambda f: (f.step, f.n, f.made))
            with contextlib.suppress(OSError, CmdistError):  # the table's pictures have said what is wrong with it
                images, columns = pictures.read(last.stem or "")
                values = ", ".join(f"{comparison.title(f.metric)} {f.text}" for f in own if f.stem == last.stem)
                caption = tag("figcaption", f"Step {last.step:,}. {values}")
                picture = _image(images, columns, f"{sampler} samples of {row.name}")
                cards.append((legend(number, row.name), tag("figure", picture, caption)))
        name = comparison.SAMPLERS.get(sampler, sampler)
        if cards:
            parts.append(tag("h3", name[0].upper() + name[1:]) + _grid(cards))
    return section("Samples", "The same seed at the same place in every grid.", join(parts))


def _glances(run_url: str) -> list[tuple[int, str, str]]:
    """(step, sampler, stem) of the grids that glances have left, in order."""
    folder = storage.join(run_url, "glances")
    matches = [match for name in storage.names(folder) if (match := GLANCE.fullmatch(name))]
    return sorted((int(match[1]), match[2], storage.join(folder, match[0].removesuffix(".npz"))) for match in matches)


def _over_training(rows: Sequence[Row]) -> Markup:
    cards = []
    for number, row in enumerate(rows):
        with contextlib.suppress(OSError, CmdistError):
            glances = _glances(row.url) if row.url else []
            for sampler in sorted({sampler for _, sampler, _ in glances}):
                strips = list[Markup]()
                for step, _, stem in (glance for glance in glances if glance[1] == sampler):
                    with contextlib.suppress(OSError, CmdistError):
                        images, _ = pictures.read(stem)
                        picture = _image(images[:STRIP], STRIP, f"{row.name}, step {step}")
                        strips += [tag("span", short(step)), picture]
                title = titled(legend(number, row.name), f"{comparison.SAMPLERS.get(sampler, sampler)}, by step")
                cards.append((title, tag("div", *strips, class_="strip")))
    return section("Samples over training", "Fixed seeds, at each glance.", _grid(cards))
