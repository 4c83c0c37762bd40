"""The report escapes by construction: markup in any field of any source stays text."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from markupsafe import Markup

from cmdist.evaluation import pictures
from cmdist.report import comparison, drawing, sections
from cmdist.report.comparison import Figure, Row
from cmdist.report.markup import join, tag
from cmdist.report.svg import Series, chart

EVIL = """<x-evil onload="1">&'"</x-evil>--></script><x-evil>"""
SIGMA = "_sigma_0.002_0.5"


class Page(HTMLParser):
    """The names of a page's elements and attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(str(text))  # HTMLParser cuts it up, and a piece of Markup that is added to would escape
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(name)
        self.attributes |= {key for key, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_b4_what_is_not_markup_is_escaped():
    assert tag("b", "<i>", tag("i", "a & b")) == "<b>&lt;i&gt;<i>a &amp; b</i></b>"
    assert tag("img", alt='"><i>', data_name=3, class_="c", width=None) == (
        '<img alt="&#34;&gt;&lt;i&gt;" data-name="3" class="c">'
    )
    assert join(["<", Markup("<br>")], "&") == "&lt;&amp;<br>"
    assert tag("p", f"{tag('b', 'x')}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"  # a forgotten join shows, it never runs


def runs(folder: Path, evil: str) -> list[Row]:
    """Two runs with everything that a report shows; `evil` ends each text that comes from outside."""
    rows = []
    for number in range(2):
        name, root = f"run {number}{evil}", folder / str(number)
        stem = str(root / "evaluations" / "step-2-1step")
        pictures.write(stem, torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 2)
        pictures.write(
            str(root / "glances" / f"step-1-{'steps' if evil else '1step'}"), torch.zeros(4, 3, 8, 8).byte(), 2
        )
        protocol = {
            f"protocol.n{evil}": f"{number}{evil}",
            "protocol.n": f"50{evil}",
            "protocol_id": f"id{number}{evil}",
        }
        figures = [
            Figure(f"{metric}_{sampler}{evil}", 3.0 + step, step, step, protocol | {"stem": stem, "sampling.ema": evil})
            for metric in ("fid", f"own{evil}")
            for sampler in ("1step", "ode")
            for step in (1, 2)
        ]
        tags = {
            "cmdist.numbers": f"mu,stage{evil}", "cmdist.run": str(root), "cmdist.device": f"cpu{evil}",
            "mlflow.source.git.commit": f"12{evil}-dirty", "attempts": f"1{evil}", "cmdist.world_size": f"1{evil}",
        }  # fmt: skip
        params = {f"key{evil}": f"{number}{evil * 3}", "tracking.experiment": evil, "objective.kind": f"ct{evil}"}
        run = {"id": name, "name": name, "params": params, "tags": tags, "metrics": {f"loss{evil}": 1.0}, "start": 0}
        row = Row(run | {"end": 9000, "status": f"RUNNING{evil}", "parent": None}, "uri", name, figures)
        names = ("loss", "wall_seconds", f"stage{evil}", f"loss{SIGMA}", f"told{evil}{SIGMA}")
        row.__dict__["histories"] = {history: [(1, 1.0), (2, 3.0)] for history in names}
        rows.append(row)
    return rows


@pytest.mark.parametrize("mixed", [False, True])
def test_b4_markup_in_every_field_of_every_source_stays_text(tmp_path, mixed):
    evil, plain = ([*runs(tmp_path / kind, text)] for kind, text in (("evil", EVIL), ("plain", "")))
    pages = []
    for rows, note in ((evil, EVIL), (plain, "")):
        pages.append(Page(sections.render(rows, comparison.columns(rows, mixed), [f"note {note}"])))
    assert "x-evil" not in pages[0].elements and "onload" not in pages[0].attributes
    assert pages[0].elements - pages[1].elements <= {"wbr"}  # long values may be broken
    assert pages[0].attributes == pages[1].attributes
    for field in ("run 0", "key", "ct", "running", "cpu", "1", "own", "stage", "told", "note ", "id1"):
        assert f"{field}{EVIL}".lower() in pages[0].text.lower(), field


def test_b4_markup_in_a_chart_and_in_a_study_s_picture_stays_text():
    drawn = chart(EVIL, [Series(EVIL, 0, [(1, 1), (2, 2)])], EVIL, form=lambda value: EVIL)
    assert "x-evil" not in Page(drawn).elements
    assert Page(drawing.picture("folder", EVIL, EVIL)).elements == {"picture", "source", "img"}
