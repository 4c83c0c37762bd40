"""The pieces of HTML that the sections of a report share."""

from collections.abc import Iterable
from html import escape

from cmdist.report.svg import COLOURS, marker


def section(title: str, text: str, content: str) -> str:
    """A section; empty without content. `text` and `content` are HTML."""
    return f"<section><h2>{title}</h2>{f'<p>{text}</p>' if text else ''}{content}</section>" if content else ""


def legend(number: int, name: str) -> str:
    """A run's mark and name."""
    drawn = f'<svg viewBox="0 0 14 14">{marker(number, 7, 7, 4.6)}</svg>'
    return f'<span class="key series c{number % COLOURS}">{drawn}{label(name)}</span>'


def label(name: str) -> str:
    """A name, cut with an ellipsis where it is too long."""
    return f'<span class="name" title="{escape(name, quote=True)}">{escape(name)}</span>'


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Cells are HTML and bring their own <th> or <td>."""
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return f'<div class="card scroll"><table><thead><tr>{"".join(head)}</tr></thead><tbody>{rows}</tbody></table></div>'
