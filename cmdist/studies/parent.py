"""A study's run in MLflow: the parent of the runs that it made, with medians as metrics and pages as artifacts."""

import time
from collections.abc import Sequence
from pathlib import Path

from cmdist.checkpoints import record
from cmdist.report import tables
from cmdist.studies.grid import Cell, Study
from cmdist.system import storage
from cmdist.tracking import mlflow as tracking


def log(study: Study, name: str, grid: Sequence[Cell], folder: str, pages: Sequence[str]) -> str | None:
    """Write the study into the MLflow of its runs; MLflow's id of it, or None if they are tracked nowhere. A run that
    another study made stays that one's. Raises TrackingError.
    """
    urls = dict.fromkeys(cell.url for cell in grid if storage.exists(record.url(cell.url)))
    runs = [run for run in map(record.read, urls) if run["tracking_uri"] != "none"]
    if not runs:
        return None
    uri, experiment = runs[0]["tracking_uri"], runs[0]["experiment"]  # the root of a study says where all of its are
    metrics = {_metric(row, study): float(row["median"]) for row in tables.read(folder, "medians")}
    files = [Path(place) for place in map(storage.local_path, pages) if place is not None]
    return tracking.log_study(
        uri,
        experiment,
        name,
        study.title,
        [run["id"] for run in runs],
        metrics,
        files,
        time.time_ns() // 1_000_000,
    )


def _metric(row: dict[str, str], study: Study) -> str:
    """A name that MLflow takes: fd_1step/cd/distance=l1/at 400."""
    axes = [axis for axis in study.groups[row["group"]].axes if row.get(axis)]
    sampler = "ode" if row["sampler"] == "heun" else f"{row['sampler']}step"
    parts = [f"{row['metric']}_{sampler}", row["group"], *(f"{axis} {row[axis]}" for axis in axes), f"at {row['step']}"]
    return tracking.metric_name("/".join(parts))
