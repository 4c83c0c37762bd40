"""The sections of a report that say how runs differ, how they were measured and where they ran."""

import time
from collections import Counter
from collections.abc import Sequence
from html import escape

from cmdist.report import comparison
from cmdist.report.comparison import Row
from cmdist.report.elements import legend, section, table

HIDDEN = {"run.name", "run.root"}  # differ in any two runs


def configurations(rows: Sequence[Row]) -> str:
    """What differs between the configurations, and what is the same."""
    keys = sorted({key for row in rows for key in row.params} - HIDDEN)
    different = [key for key in keys if len({row.params.get(key) for row in rows}) > 1]
    head = ["<th>setting</th>", *(f'<th class="text">{legend(n, row.name)}</th>' for n, row in enumerate(rows))]

    def line(key: str) -> list[str]:
        values = [row.params.get(key, "–") for row in rows]
        (usual, count), *_ = Counter(values).most_common(1)
        plain = [value == usual and count > 1 for value in values] if key in different else [True] * len(values)
        cells = [
            f'<td class="text wrap{"" if p else " other"}">{_value(v)}</td>' for v, p in zip(values, plain, strict=True)
        ]
        return [f"<th><code>{escape(key)}</code></th>", *cells]

    same = [key for key in keys if key not in different]
    shown = table(head, map(line, different)) if different else ""
    rest = (
        f"<details><summary>{len(same)} settings that are the "
        f"same</summary>{table(head[:2], (line(k)[:2] for k in same))}</details>"
        if same
        else ""
    )
    if len(rows) == 1:
        rest = f"<details><summary>{len(same)} settings</summary>{table(head, map(line, same))}</details>"
    text = "Only what is different; marked where a run leaves what most have." if different else ""
    return section("Configuration", text, shown + rest)


def protocols(rows: Sequence[Row]) -> str:
    """What two figures must have in common to be compared."""
    letters = comparison.protocols(rows)
    examples = {f.protocol: f.params for row in rows for f in row.figures}
    keys = sorted({k for params in examples.values() for k in params if k.startswith("protocol.")})
    head = [
        "<th>field</th>",
        *(f'<th class="text">{letter} <small>{protocol}</small></th>' for protocol, letter in letters.items()),
    ]
    body = []
    for key in keys:
        values = [examples[p].get(key, "–") for p in letters]
        cells = [
            f'<td class="text wrap{" other" if v != values[0] else ""}"><code>{_value(v)}</code></td>' for v in values
        ]
        body.append([f"<th>{escape(key.removeprefix('protocol.'))}</th>", *cells])
    counts = Counter(f.protocol for row in rows for f in row.figures)
    body.append(["<th>figures</th>", *(f'<td class="text">{counts[p]}</td>' for p in letters)])
    text = "What two figures must have in common to be compared." if letters else ""
    return section("Protocols", text, table(head, body) if letters else "")


def places(rows: Sequence[Row]) -> str:
    """Where and when each run was made."""
    head = [
        "<th>run</th>",
        *(
            f'<th class="text">{name}</th>'
            for name in ("status", "started", "attempts", "ranks", "device", "commit", "folder")
        ),
    ]
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
        body.append(
            [f"<th>{legend(number, row.name)}</th>", *(f'<td class="text">{escape(value)}</td>' for value in values)]
        )
    return section("Where they ran", "", table(head, body))


def _value(text: str) -> str:
    """Long values may be broken behind _ and /, short ones nowhere."""
    if text in ("None", ""):
        return "–"
    if len(text) <= 26:
        return f'<span class="whole">{escape(text)}</span>'
    return escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>")
