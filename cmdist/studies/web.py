"""The report of a study: one HTML file that needs no other, with figures, costs, pictures side by side and its data."""

import base64
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cmdist.evaluation import stored
from cmdist.report import elements, grids, page
from cmdist.report.markup import join, tag
from cmdist.studies import claims
from cmdist.studies.grid import Cell, Study
from cmdist.system import storage

COSTS = {"images": "images seen", "tflop": "TFLOP of training, counted", "seconds": "seconds of training"}
NOTE = (
    "Frechet distance of generated images to all real ones: the median over seeds, bars from the lowest to the highest."
)


def write(study: Study, name: str, grid: Sequence[Cell], folder: str, out: str) -> str:
    """OUT/NAME.html of a study whose tables and figure are in `folder`; its place. Pictures are those that lie in the
    runs, where they are.
    """
    place = storage.join(out, f"{name}.html")
    storage.write(place, str(document(study, name, grid, folder)).encode())
    return place


def document(study: Study, name: str, grid: Sequence[Cell], folder: str) -> Markup:
    """The whole page."""
    titles = {group: words.title or group for group, words in study.groups.items()}
    axes = list(dict.fromkeys(axis for group in study.groups.values() for axis in group.axes))
    body = join(
        [
            tag("h1", study.title),
            tag("p", study.question.strip()),
            elements.section("Claims", "", _claims(study, folder)),
            elements.section(
                "The figure", NOTE, _figure(folder, "figure", study.title) if study.panels else Markup("")
            ),
            elements.section(
                "At equal images, FLOPs and time",
                grids.COST_NOTE,
                _figure(folder, "costs", "Frechet distance against cost"),
            ),
            elements.section("All figures", NOTE, _table(folder, axes, titles)),
            elements.section(
                "Pictures",
                "Of each run with the first seed, from the same noise, in the fewest steps of sampling. "
                "Columns are the classes where these are few.",
                _pictures(grid, study),
            ),
            elements.section("The data", "", _data(folder, name)),
        ]
    )
    return page.page(study.title, body)


def _figure(folder: str, name: str, alt: str) -> Markup:
    if not alt:
        return Markup("")
    light, dark = (
        _data_url(storage.join(folder, f"{name}-{theme}.svg"), "image/svg+xml") for theme in ("light", "dark")
    )
    source = tag("source", media="(prefers-color-scheme: dark)", srcset=dark)
    return tag("div", tag("picture", source, tag("img", alt=alt, src=light, style="max-width: 100%")), class_="card")


def _data_url(place: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(storage.read(place)).decode()}"


def _table(folder: str, axes: Sequence[str], titles: dict[str, str]) -> Markup:
    head, *rows = grids.cells(folder, axes, titles)
    cells = [
        [tag("td", value, class_="text" if i <= len(axes) else None) for i, value in enumerate(row)] for row in rows
    ]
    return elements.table([tag("th", value) for value in head], cells)


def _claims(study: Study, folder: str) -> Markup:
    if not study.claims:
        return Markup("")
    head = [tag("th", title, class_="text") for title in ("claim of the paper", "what is seen", "")]
    rows = [claims.row(claim, folder) for claim in study.claims]
    return elements.table(head, [[tag("td", value, class_="text wrap") for value in row] for row in rows])


def _pictures(grid: Sequence[Cell], study: Study) -> Markup:
    """A card for each run of the first seed whose pictures are there."""
    cards = []
    for cell in grid:
        if cell.seed == study.seeds[0] and (picture := _picture(cell)):
            title = " ".join([study.groups[cell.group].title or cell.group, *cell.axes.values()])
            src = _data_url(picture[1], "image/png")
            figure = tag("figure", tag("img", alt=title, src=src), tag("figcaption", f"{title}: {picture[0]}"))
            cards.append(tag("div", figure, class_="card"))
    return tag("div", *cards, class_="grid") if cards else Markup("")


def _picture(cell: Cell) -> tuple[str, str] | None:
    """How a run was sampled at its last step in the fewest steps, and where the pictures are."""
    found: list[tuple[int, str, str]] = []
    for _, record in stored.records(storage.join(cell.url, "evaluations"), f"step-{cell.config.train.steps:010d}-"):
        how, place = record["sampling"], f"{record['stem']}.png"
        if record["protocol"]["n"] == cell.measure.n and storage.exists(place):
            found.append((int(how.get("steps", len(how.get("times", [1])))), record["title"], place))
    return min(found)[1:] if found else None


def _data(folder: str, name: str) -> Markup:
    links: list[Any] = []
    for table in ("figures", "medians"):
        url = _data_url(storage.join(folder, f"{table}.csv"), "text/csv")
        links += [tag("a", f"{table}.csv", href=url, download=f"{name}-{table}.csv"), " "]
    return tag("div", *links)
