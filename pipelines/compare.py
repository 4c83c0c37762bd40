"""Compare runs: a table in the terminal, and a report (one HTML file).
Figures come from MLflow (evaluate.py puts them there).

python pipelines/compare.py runs/digits/edm runs/digits/cd runs/digits/ct
python pipelines/compare.py --experiment cmdist --uri sqlite:///runs/digits/mlflow.db --html report.html

Figures made under different protocols (extractor, reference, n, seeds, rounding) never share a column, unless --mixed
asks for it; A is the protocol of most figures. Figures in brackets are the teacher's.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from cmdist.checkpoints import record as run_record
from cmdist.errors import CmdistError, ConfigError, DataError
from cmdist.evaluation import pictures, stored
from cmdist.report import charts, comparison, sections
from cmdist.report.comparison import Column, Row
from cmdist.system import cli, storage
from cmdist.tracking import courier
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.branches import GIVEN_UP

HEADS = ("run", "objective", "steps", "EMA")


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="run", help="run folders")
    parser.add_argument("--experiment", help="all runs of an MLflow experiment")
    parser.add_argument("--uri", help="of the tracking server, for --experiment; default: MLFLOW_TRACKING_URI")
    parser.add_argument(
        "--out", help="folder for the report and the pictures; default: `comparison` beside the first run, else here"
    )
    parser.add_argument(
        "--store",
        nargs="+",
        default=[],
        metavar="URL",
        help="read pictures and data sets that MLflow names below these",
    )
    parser.add_argument("--html", metavar="FILE", help="the report; default: report.html in that folder")
    parser.add_argument(
        "--mixed", action="store_true", help="put figures of different protocols in one column, with marks"
    )
    options = parser.parse_args(arguments)
    if options.uri and not options.experiment:
        raise ConfigError("--uri is for --experiment; run folders say where they are tracked")
    if bool(options.runs) == bool(options.experiment):
        raise ConfigError("give run folders or --experiment, one of the two")
    rows = (
        of_folders(options.runs)
        if options.runs
        else of_experiment(options.uri or os.environ.get("MLFLOW_TRACKING_URI"), options.experiment)
    )
    roots = [*options.store, *(url.rstrip("/").rpartition("/")[0] for url in options.runs if "://" in url)]
    if forgotten := comparison.keep_to(rows, roots):
        print(
            f"{forgotten} URLs that MLflow names are not looked at; --store URL allows those below it", file=sys.stderr
        )
    comparison.name_apart(rows)
    beside = storage.absolute(options.runs[0]).rstrip("/").rpartition("/")[0] if options.runs else storage.absolute(".")
    out = options.out or storage.join(beside, "comparison")
    columns = comparison.columns(rows, options.mixed)
    notes = [*references(rows), *comparison.differences(rows), *comparison.lineage(rows)]
    print("\n".join([table(rows, columns), *notes]))
    usual = next(iter(comparison.protocols(rows)), None)
    losses = [(row.name, row.histories.get("loss", [])) for row in rows]
    bars = [
        (row.name, {f.metric: f.value for f in row.shown if f.protocol == usual and f.metric.startswith("f")})
        for row in rows
    ]
    storage.write(storage.join(out, "comparison.png"), charts.comparison(losses, bars))
    print(f"curves:  {storage.join(out, 'comparison.png')}")
    if picture := samples(rows):
        storage.write(storage.join(out, "samples.png"), picture)
        print(f"samples: {storage.join(out, 'samples.png')}")
    page = storage.absolute(options.html) if options.html else storage.join(out, "report.html")
    storage.write(page, sections.render(rows, columns, notes).encode())
    print(f"report:  {page}")


def of_folders(urls: Sequence[str]) -> list[Row]:
    """The runs of the given folders, in that order. Raises DataError."""
    records = []
    for url in urls:
        try:
            records.append((url, run_record.read(url)))
        except FileNotFoundError:
            raise DataError(f"{url} is not a run folder: it has no run.json") from None
        if records[-1][1]["tracking_uri"] == "none":
            raise DataError(f"the run of {url} is not tracked (tracking.uri=none), and figures are read from MLflow")
    for url, _ in records:
        courier.deliver(tracking.spool_folder(storage.absolute(url)))
    known = {
        place: tracking.runs(*place)
        for place in {(record["tracking_uri"], record["experiment"]) for _, record in records}
    }
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for url, record in records:
        uri, experiment = record["tracking_uri"], record["experiment"]
        if record["id"] in seen:
            print(f"{url} is the same run as {seen[record['id']]}, not trained on since it was copied", file=sys.stderr)
            continue
        seen[record["id"]] = url
        own = [run for run in known[uri, experiment] if run["key"] == record["id"] and run["parent"] is None]
        if not own:
            raise DataError(f"the run of {url} is not in MLflow ({uri}, experiment '{experiment}')")
        rows += comparison.make_rows(own[:1], known[uri, experiment], uri)
    return rows


def of_experiment(uri: str | None, experiment: str) -> list[Row]:
    """All runs of an experiment, oldest first. Raises ConfigError, DataError."""
    if not uri:
        raise ConfigError(
            "--experiment needs --uri or the variable MLFLOW_TRACKING_URI, e.g. sqlite:///runs/digits/mlflow.db"
        )
    tracking.refuse_missing(uri)
    runs = tracking.runs(uri, experiment)
    parents = sorted(
        (run for run in runs if run["parent"] is None and not {GIVEN_UP, tracking.STUDY} & set(run["tags"])),
        key=lambda run: run["start"],
    )
    if not parents:
        raise DataError(f"experiment '{experiment}' of {uri} holds no runs")
    return comparison.make_rows(parents, runs, uri)


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The rows as aligned text; in a mixed column a figure of another protocol than A has its letter,
    a teacher's stands in brackets.
    """
    letters = comparison.protocols(rows)
    cells = [[*HEADS, *(column.title for column in columns), "wall time"]]
    for row in rows:
        figures = []
        for column in columns:
            figure, mark = row.newest(column.metric, column.protocol), "{}"
            teacher = comparison.teacher_of(row, rows)
            if figure is None and teacher and column.metric.endswith("_ode"):
                figure, mark = teacher.newest(column.metric, column.protocol), "({})"
            letter = (
                f" [{letters[figure.protocol]}]"
                if figure and column.protocol is None and letters[figure.protocol] != "A"
                else ""
            )
            figures.append(mark.format(figure.text + letter) if figure else "-")
        wall = "-" if row.wall_seconds is None else sections.duration(row.wall_seconds)
        cells.append([row.name, row.objective, row.step, row.ema, *figures, wall])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def references(rows: Sequence[Row]) -> list[str]:
    """What real data score under the usual protocol, if `evaluate.py reference` has measured it."""
    lines = {}
    usual = next(iter(comparison.protocols(rows)), None)
    for row in rows:
        url = row.params.get("data.url")
        example = next((f.params for f in row.figures if f.protocol == usual), None)
        if url is None or example is None:
            continue
        with contextlib.suppress(OSError, CmdistError):  # the data set may be out of sight
            for record in stored.scores(url):
                if all(str(record[k]) == example.get(f"protocol.{k}") for k in ("extractor", "reference", "n")):
                    lines["real images, drawn with replacement"] = record["bootstrap"]
                    lines["Gaussian with the pixels' mean and covariance"] = record["matched_gaussian"]
    return [f"for reference: {title} {value:.2f}" for title, value in lines.items()]


def samples(rows: Sequence[Row]) -> bytes | None:
    """The sample grids of all runs below each other, titled;
    those of another image size or class count are left out.
    """
    blocks, layout, named = [], None, False
    for row in rows:
        seen = set()
        for figure in row.shown:
            stem = figure.stem
            if stem is None or stem in seen:
                continue
            seen.add(stem)
            try:
                images, columns = pictures.read(stem)
            except (OSError, CmdistError) as error:
                why = f" ({error})" if isinstance(error, CmdistError) else ""
                print(f"no sample images at {stem}.npz{why}", file=sys.stderr)
                continue
            layout = layout or (columns, images.shape[1:])
            if (columns, images.shape[1:]) == layout:
                metric = comparison.title_of_kind(figure.metric)
                title = f"{row.name}: {figure.params.get('title', '?')} ({metric} {figure.text})"
                blocks.append((title, images))
                named = figure.params.get("protocol.labels") == f"seed modulo {columns}"
    if not blocks or layout is None:
        return None
    return pictures.png(pictures.side_by_side(blocks, layout[0], [str(c) for c in range(layout[0])] if named else ()))


if __name__ == "__main__":
    cli.run(main)
