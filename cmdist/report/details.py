"""The sections of a report that say how runs differ, how they were measured and where they ran."""

import re
import time
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from cmdist.report import comparison
from cmdist.report.comparison import Row
from cmdist.report.elements import legend, section, table
from cmdist.report.markup import join, tag

HIDDEN = {"run.name", "run.root"}  # differ in any two runs


def configurations(rows: Sequence[Row]) -> Markup:
    """What differs between the configurations, and what is the same."""
    keys = sorted({key for row in rows for key in row.params} - HIDDEN)
    different = [key for key in keys if len({row.params.get(key) for row in rows}) > 1]
    head = [tag("th", "setting"), *(tag("th", legend(n, row.name), class_="text") for n, row in enumerate(rows))]

    def line(key: str) -> list[Markup]:
        values = [row.params.get(key, "–") for row in rows]
        (usual, count), *_ = Counter(values).most_common(1)
        plain = [value == usual and count > 1 for value in values] if key in different else [True] * len(values)
        cells = [_cell(_value(v), other=not p) for v, p in zip(values, plain, strict=True)]
        return [tag("th", tag("code", key)), *cells]

    same = [key for key in keys if key not in different]
    shown = table(head, map(line, different)) if different else Markup("")
    if len(rows) == 1:
        rest = _folded(f"{len(same)} settings", table(head, map(line, same)))
    else:
        rest = _folded(f"{len(same)} settings that are the same", table(head[:2], (line(k)[:2] for k in same)))
    text = "Only what is different; marked where a run leaves what most have." if different else ""
    return section("Configuration", text, shown + rest if same or len(rows) == 1 else shown)


def protocols(rows: Sequence[Row]) -> Markup:
    """What two figures must have in common to be compared."""
    letters = comparison.protocols(rows)
    examples = {f.protocol: f.params for row in rows for f in row.figures}
    keys = sorted({k for params in examples.values() for k in params if k.startswith("protocol.")})
    head = [
        tag("th", "field"),
        *(tag("th", f"{letter} ", tag("small", protocol), class_="text") for protocol, letter in letters.items()),
    ]
    body = []
    for key in keys:
        values = [examples[p].get(key, "–") for p in letters]
        cells = [_cell(tag("code", _value(v)), other=v != values[0]) for v in values]
        body.append([tag("th", key.removeprefix("protocol.")), *cells])
    counts = Counter(f.protocol for row in rows for f in row.figures)
    body.append([tag("th", "figures"), *(tag("td", str(counts[p]), class_="text") for p in letters)])
    text = "What two figures must have in common to be compared." if letters else ""
    return section("Protocols", text, table(head, body) if letters else Markup(""))


def places(rows: Sequence[Row]) -> Markup:
    """Where and when each run was made."""
    names = ("status", "started", "attempts", "ranks", "device", "commit", "folder")
    head = [tag("th", "run"), *(tag("th", name, class_="text") for name in names)]
    body = []
    for number, row in enumerate(rows):
        tags = row.run["tags"]
        commit, _, dirty = tags.get("mlflow.source.git.commit", "").partition("-")
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.run["start"] / 1000))
        values = [
            row.run["status"].lower(),
            started,
            tags.get("attempts", "–"),
            str(row.ranks),
            tags.get("cmdist.device", "–"),
        ]
        values += [commit[:9] + (", changed" if dirty else "") or "–", row.url or "–"]
        body.append([tag("th", legend(number, row.name)), *(tag("td", value, class_="text") for value in values)])
    return section("Where they ran", "", table(head, body))


def _cell(content: Markup, other: bool) -> Markup:
    return tag("td", content, class_="text wrap other" if other else "text wrap")


def _folded(summary: str, content: Markup) -> Markup:
    return tag("details", tag("summary", summary), content)


def _value(text: str) -> Markup:
    """Long values may be broken behind _ and /, short ones nowhere."""
    if text in ("None", ""):
        return Markup("–")
    if len(text) <= 26:
        return tag("span", text, class_="whole")
    return join(part + tag("wbr") if part in ("_", "/") else part for part in re.split("([_/])", text))
