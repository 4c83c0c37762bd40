"""The pieces of HTML that the sections of a report share."""

from collections.abc import Iterable

from markupsafe import Markup

from cmdist.report.markup import join, tag
from cmdist.report.svg import COLOURS, marker


def section(title: str, text: str, content: Markup) -> Markup:
    """A section; empty without content."""
    return tag("section", tag("h2", title), tag("p", text) if text else "", content) if content else Markup("")


def legend(number: int, name: str) -> Markup:
    """A run's mark and name."""
    drawn = tag("svg", marker(number, 7, 7, 4.6), viewBox="0 0 14 14")
    return tag("span", drawn, label(name), class_=f"key series c{number % COLOURS}")


def label(name: str) -> Markup:
    """A name, cut with an ellipsis where it is too long."""
    return tag("span", name, class_="name", title=name)


def table(head: Iterable[Markup], body: Iterable[Iterable[Markup]]) -> Markup:
    """Cells are th or td elements."""
    rows = join(tag("tr", *cells) for cells in body)
    return tag("div", tag("table", tag("thead", tag("tr", *head)), tag("tbody", rows)), class_="card scroll")


def titled(title: str, note: str) -> Markup:
    """A card's title with a remark in small letters."""
    return join([title, " ", tag("small", note)])
