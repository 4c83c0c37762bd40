"""Compare runs: a table in the terminal, curves and samples as pictures. Figures come from MLflow (evaluate.py puts them there).

python pipelines/compare.py runs/digits/edm runs/digits/cd runs/digits/ct
python pipelines/compare.py --experiment cmdist --uri sqlite:///runs/digits/mlflow.db

A figure made under another protocol than most (extractor, reference, n, seeds, rounding) is marked and must not be compared.
Figures in brackets are the teacher's.
"""

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cmdist import charts, cli, pictures, storage, tracking
from cmdist.errors import ConfigError, DataError

HEADS = ("run", "objective", "steps", "EMA", "FD one-step", "FD two-step", "FD many-step", "wall time")


@dataclass
class Row:
    """A run and its newest figures by metric, each with the protocol that it was made under."""

    run: dict[str, Any]
    uri: str
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def step(self) -> str:
        """The step of its figures."""
        steps = sorted({int(f["step"]) for f in self.figures.values()})
        return "/".join(map(str, steps)) or "-"

    @property
    def ema(self) -> str:
        """The decay of the averages that were measured."""
        return "/".join(sorted({f["sampling.ema"] for f in self.figures.values()})) or "-"

    @property
    def wall(self) -> str:
        """Training time over all attempts."""
        seconds = self.run["metrics"].get("wall_seconds")
        if seconds is None and self.run["end"]:
            seconds = (self.run["end"] - self.run["start"]) / 1000
        return "-" if seconds is None else f"{seconds:.0f} s" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="run", help="run folders")
    parser.add_argument("--experiment", help="all runs of an MLflow experiment")
    parser.add_argument("--uri", help="of the tracking server, for --experiment; default: MLFLOW_TRACKING_URI")
    parser.add_argument("--out", help="folder for the pictures; default: `comparison` beside the first run, else here")
    options = parser.parse_args(arguments)
    if bool(options.runs) == bool(options.experiment):
        raise ConfigError("give run folders or --experiment, one of the two")
    rows = (
        of_folders(options.runs)
        if options.runs
        else of_experiment(options.uri or os.environ.get("MLFLOW_TRACKING_URI"), options.experiment)
    )
    beside = storage.absolute(options.runs[0]).rstrip("/").rpartition("/")[0] if options.runs else storage.absolute(".")
    out = options.out or storage.join(beside, "comparison")
    usual, others = protocols(rows)
    print(table(rows, usual))
    for line in [*references(rows, usual), *differences(rows, usual, others)]:
        print(line)
    histories = [(row.run["name"], tracking.history(row.uri, row.run["id"], "loss")) for row in rows]
    bars = [(row.run["name"], {m: f["value"] for m, f in row.figures.items() if f["protocol_id"] == usual}) for row in rows]
    storage.write(storage.join(out, "comparison.png"), charts.comparison(histories, bars))
    print(f"curves:  {storage.join(out, 'comparison.png')}")
    if picture := samples(rows):
        storage.write(storage.join(out, "samples.png"), picture)
        print(f"samples: {storage.join(out, 'samples.png')}")


def of_folders(urls: Sequence[str]) -> list[Row]:
    """The runs of the given folders, in that order. Raises DataError."""
    rows, known = [], {}
    for url in urls:
        try:
            record = json.loads(storage.read(storage.join(url, "run.json")))
        except FileNotFoundError:
            raise DataError(f"{url} is not a run folder: it has no run.json") from None
        tracking.deliver(tracking.spool_folder(storage.absolute(url)))
        place = (record["tracking_uri"], record["experiment"])
        if place not in known:
            known[place] = tracking.runs(*place)
        own = [run for run in known[place] if run["key"] == record["id"] and run["parent"] is None]
        if not own:
            raise DataError(f"the run of {url} is not in MLflow ({place[0]}, experiment '{place[1]}')")
        rows.append(with_figures(own[0], known[place], place[0]))
    return rows


def of_experiment(uri: str | None, experiment: str) -> list[Row]:
    """All runs of an experiment, oldest first. Raises ConfigError, DataError."""
    if not uri:
        raise ConfigError("--experiment needs --uri or the variable MLFLOW_TRACKING_URI, e.g. sqlite:///runs/digits/mlflow.db")
    found = tracking.runs(uri, experiment)
    parents = sorted((run for run in found if run["parent"] is None), key=lambda run: run["start"])
    if not parents:
        raise DataError(f"experiment '{experiment}' of {uri} holds no runs")
    return [with_figures(run, found, uri) for run in parents]


def with_figures(run: dict[str, Any], found: Sequence[dict[str, Any]], uri: str) -> Row:
    """A row with the figures of the newest evaluated checkpoint: by metric, the last one made there."""
    row = Row(run, uri)
    for child in sorted(
        (c for c in found if c["parent"] == run["id"] and c["status"] == "FINISHED"),
        key=lambda c: (int(c["tags"].get("step", 0)), c["start"]),
    ):
        for metric, value in child["metrics"].items():
            row.figures[metric] = {"value": value, "step": child["tags"].get("step", 0), **child["params"]}
    return row


def protocols(rows: Sequence[Row]) -> tuple[str | None, list[str]]:
    """The protocol of most figures, and the others."""
    counts = Counter(figure["protocol_id"] for row in rows for figure in row.figures.values())
    ranked = [protocol for protocol, _ in counts.most_common()]
    return (ranked[0], ranked[1:]) if ranked else (None, [])


def table(rows: Sequence[Row], usual: str | None) -> str:
    """The rows as aligned text; a figure of another protocol than the usual one has a mark, a teacher's stands in brackets."""
    cells = [list(HEADS)]
    for row in rows:
        figures = [_figure(row, metric, usual) for metric in ("fd_1step", "fd_2step", "fd_ode")]
        teacher = _teacher(row, rows)
        if teacher and "fd_ode" not in row.figures:
            figures[2] = f"({_figure(teacher, 'fd_ode', usual)})"
        cells.append([row.run["name"], row.run["params"].get("objective", "-"), row.step, row.ema, *figures, row.wall])
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADS))]
    lines = [
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _teacher(row: Row, rows: Sequence[Row]) -> Row | None:
    url = row.run["params"].get("teacher", "None")
    return next((r for r in rows if url not in ("None", "exact") and r.run["tags"].get("cmdist.run") == storage.absolute(url)), None)


def _figure(row: Row, metric: str, usual: str | None) -> str:
    figure = row.figures.get(metric)
    if figure is None:
        return "-"
    return f"{figure['value']:.2f}{'' if figure['protocol_id'] == usual else ' [!]'}"


def differences(rows: Sequence[Row], usual: str | None, others: Sequence[str]) -> list[str]:
    """A line for each protocol other than the usual one: what is different in it."""
    examples = {f["protocol_id"]: f for row in rows for f in row.figures.values()}
    lines = []
    for other in others:
        assert usual is not None
        keys = [k for k in examples[usual] if k.startswith("protocol.") and examples[other].get(k) != examples[usual][k]]
        where = ", ".join(f"{row.run['name']} {m}" for row in rows for m, f in row.figures.items() if f["protocol_id"] == other)
        what = "; ".join(f"{k.removeprefix('protocol.')} {examples[other].get(k)}, not {examples[usual][k]}" for k in keys)
        lines.append(f"[!] not comparable with the rest: {where} ({what})")
    return lines


def references(rows: Sequence[Row], usual: str | None) -> list[str]:
    """What real data score under the usual protocol, if `evaluate.py reference` has measured it."""
    lines = {}
    for row in rows:
        url = row.run["params"].get("data.url")
        example = next((f for f in row.figures.values() if f["protocol_id"] == usual), None)
        if url is None or example is None:
            continue
        with contextlib.suppress(OSError):
            for name in storage.names(url):
                if name.startswith("references-") and name.endswith(".json"):
                    record = json.loads(storage.read(storage.join(url, name)))
                    if all(str(record[k]) == example[f"protocol.{k}"] for k in ("extractor", "reference", "n")):
                        lines["real images, drawn with replacement"] = record["bootstrap"]
                        lines["Gaussian with the pixels' mean and covariance"] = record["matched_gaussian"]
    return [f"for reference: {title} {value:.2f}" for title, value in lines.items()]


def samples(rows: Sequence[Row]) -> bytes | None:
    """The sample grids of all runs below each other, titled; those of another image size or class count are left out."""
    blocks, layout, named = [], None, False
    for row in rows:
        for figure in row.figures.values():
            try:
                images, columns = pictures.unpack(storage.read(f"{figure['stem']}.npz"))
            except OSError:
                print(f"no sample images at {figure['stem']}.npz", file=sys.stderr)
                continue
            layout = layout or (columns, images.shape[1:])
            if (columns, images.shape[1:]) == layout:
                blocks.append((f"{row.run['name']}: {figure['title']} (FD {figure['value']:.2f})", images))
                named = figure["protocol.labels"] == f"seed modulo {columns}"
    if not blocks or layout is None:
        return None
    return pictures.png(pictures.side_by_side(blocks, layout[0], [str(c) for c in range(layout[0])] if named else ()))


if __name__ == "__main__":
    cli.run(main)
