"""Runs side by side, read from MLflow:
figures by metric and protocol, histories, and what is different between them.
"""

import contextlib
import math
import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cmdist.errors import CmdistError
from cmdist.evaluation.metrics.table import METRICS
from cmdist.system import storage
from cmdist.tracking import mlflow as tracking
from cmdist.tracking import tags
from cmdist.tracking.branches import BRANCHED, ORIGIN

SAMPLERS = {"1step": "one-step", "2step": "two-step", "ode": "many-step"}


@dataclass(frozen=True)
class Figure:
    """A value of `metric` (e.g. fid_1step) at a checkpoint, with its protocol and sampling as strings."""

    metric: str
    value: float
    step: int
    made: int  # ms since 1970
    params: dict[str, str]

    @property
    def protocol(self) -> str:
        """Figures with the same one may be compared."""
        return self.params["protocol_id"]

    @property
    def n(self) -> int:
        """Images that were made for it."""
        return tags.count(self.params, "protocol.n", 0)

    @property
    def sampler(self) -> str:
        """1step, 2step, ode, ..."""
        return self.metric.rpartition("_")[2]

    @property
    def stem(self) -> str | None:
        """Of its pictures' files."""
        return self.params.get("stem")

    @property
    def text(self) -> str:
        """The value, as a table shows it."""
        return f"{self.value:.2f}" if self.value >= 1 else f"{self.value:.3g}"


@dataclass
class Row:
    """A run with all its figures, in order of step and time."""

    run: dict[str, Any]
    uri: str
    name: str
    figures: list[Figure] = field(default_factory=list)

    @property
    def params(self) -> dict[str, str]:
        """The configuration, flat."""
        return self.run["params"]  # type: ignore[no-any-return]

    @property
    def objective(self) -> str:
        """The kind of objective; runs of before it was a section have it under the section's name."""
        return self.params.get("objective.kind", self.params.get("objective", "-"))

    @property
    def url(self) -> str | None:
        """The run's folder."""
        return self.run["tags"].get("cmdist.run")

    def newest(self, metric: str, protocol: str | None = None) -> Figure | None:
        """The figure of the newest evaluated checkpoint:
        of several the one of the most images, and of those the last one made.
        """
        figures = [f for f in self.figures if f.metric == metric and protocol in (None, f.protocol)]
        return max(figures, key=lambda f: (f.step, f.n, f.made), default=None)

    @property
    def shown(self) -> list[Figure]:
        """The newest figure of each metric."""
        return [f for metric in sorted({f.metric for f in self.figures}, key=order) if (f := self.newest(metric))]

    @property
    def step(self) -> str:
        """The step of its figures."""
        return "/".join(map(str, sorted({f.step for f in self.shown}))) or "-"

    @property
    def ema(self) -> str:
        """The decay of the averages that were measured."""
        return "/".join(sorted({f.params.get("sampling.ema", "?") for f in self.shown})) or "-"

    @property
    def wall_seconds(self) -> float | None:
        """Training time over all attempts."""
        seconds = tags.number(self.run["metrics"], "wall_seconds")
        return (self.run["end"] - self.run["start"]) / 1000 if seconds is None and self.run["end"] else seconds

    @property
    def ranks(self) -> int:
        """Of the last attempt."""
        return tags.count(self.run["tags"], "cmdist.world_size", 1)

    @property
    def device_hours(self) -> float | None:
        """As counted by the run; for runs from before it was, wall time times ranks."""
        hours = tags.number(self.run["metrics"], "device_hours")
        return self.wall_seconds * self.ranks / 3600 if hours is None and self.wall_seconds is not None else hours

    @cached_property
    def histories(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric but the node's, in order of step."""
        names = [name for name in self.run["metrics"] if not name.startswith("system/")]
        return {name: tracking.history(self.uri, self.run["id"], name) for name in names}

    @property
    def numbers(self) -> list[str]:
        """Names of the numbers that its objective gives each step; runs from before they were told had N and mu."""
        return [name for name in self.run["tags"].get(tags.NUMBERS, "n_timesteps,mu").split(",") if name]

    def images_at(self, step: int) -> float:
        """Images seen until a step."""
        return float(step * tags.count(self.params, "train.global_batch", 1))

    def seconds_at(self, step: int) -> float | None:
        """Wall time at a step, between logged ones by interpolation."""
        return _at(self.histories.get("wall_seconds", []), step)

    def device_hours_at(self, step: int) -> float | None:
        """Device-hours at a step."""
        hours, seconds = _at(self.histories.get("device_hours", []), step), self.seconds_at(step)
        return seconds * self.ranks / 3600 if hours is None and seconds is not None else hours


def _at(points: Sequence[tuple[int, float]], step: int) -> float | None:
    if not points:
        return None
    place = bisect_right(points, step, key=lambda p: p[0])
    (k0, v0), (k1, v1) = (points[place - 1] if place else (0, 0.0)), points[min(place, len(points) - 1)]
    return v0 if k1 <= k0 else v0 + (v1 - v0) * (step - k0) / (k1 - k0)


@dataclass(frozen=True)
class Column:
    """Figures that may stand below each other: one metric under one protocol (None: whatever the protocol)."""

    metric: str
    protocol: str | None
    letter: str  # of the protocol, if the metric has several columns

    @property
    def title(self) -> str:
        """E.g. 'FID one-step (B)'."""
        return title(self.metric) + (f" ({self.letter})" if self.letter else "")


def kind(metric: str) -> str:
    """'fid' for fid_1step."""
    return metric.rpartition("_")[0]


def title_of_kind(metric: str) -> str:
    """'FID' for fid_1step; a metric that the table does not know keeps its name."""
    row = METRICS.get(kind(metric))
    return row.title if row else kind(metric)


def higher_is_better(metric: str) -> bool:
    """Whether of two figures of a metric, e.g. is_1step, the higher one is better."""
    row = METRICS.get(kind(metric))
    return row is not None and row.better == "higher"


def title(metric: str) -> str:
    """'FID one-step' for fid_1step."""
    sampler = metric.rpartition("_")[2]
    return f"{title_of_kind(metric)} {SAMPLERS.get(sampler, sampler.replace('step', '-step'))}"


def order(metric: str) -> tuple[int, int, str]:
    """A key that sorts metrics as METRICS does, Frechet distances before the others;
    fewer steps first, the ODE last.
    """
    names = sorted(METRICS, key=lambda name: not METRICS[name].distance)
    what, _, sampler = metric.rpartition("_")
    steps = sampler.removesuffix("step")
    return names.index(what) if what in names else len(names), int(steps) if steps.isdigit() else 10**9, metric


def protocols(rows: Sequence[Row]) -> dict[str, str]:
    """Letters for the protocols of all figures, A for that of the most runs and figures."""
    counts = Counter(f.protocol for row in rows for f in row.shown)
    counts.update({f.protocol: 0 for row in rows for f in row.figures})
    letters = [*string.ascii_uppercase, *(f"P{n}" for n in range(27, 27 + len(counts)))]
    return {protocol: letters[n] for n, (protocol, _) in enumerate(counts.most_common())}


def columns(rows: Sequence[Row], mixed: bool = False) -> list[Column]:
    """The columns of the table of figures; `mixed` puts all protocols of a metric into one.

    A protocol is left out where another one has newer figures of all its runs: a glance's few images beside an
    evaluation.
    """
    letters, result = protocols(rows), []
    for metric in sorted({f.metric for row in rows for f in row.figures}, key=order):
        if mixed:
            result.append(Column(metric, None, ""))
            continue
        own = [p for p in letters if any(row.newest(metric, p) for row in rows)]
        kept = [p for p in own if not any(_covers(rows, metric, other, p) for other in own if other != p)]
        result += [Column(metric, p, letters[p] if len(letters) > 1 and p != next(iter(letters)) else "") for p in kept]
    return result


def _covers(rows: Sequence[Row], metric: str, other: str, protocol: str) -> bool:
    """Whether every run with a figure under `protocol` has one under `other` of a step as new, with more images."""
    pairs = [(row.newest(metric, protocol), row.newest(metric, other)) for row in rows]
    return all(b is not None and b.step >= a.step and b.n > a.n for a, b in pairs if a is not None)


def differences(rows: Sequence[Row]) -> list[str]:
    """A line for each protocol but A that the table shows: what is different in it, and whose figures they are."""
    letters = protocols(rows)
    examples = {f.protocol: f for row in rows for f in row.figures}
    lines = []
    for protocol, letter in list(letters.items())[1:]:
        usual = examples[next(iter(letters))].params
        here = examples[protocol].params
        # an older record may lack what newer ones say, as the arithmetic
        keys = [k for k in usual | here if k.startswith("protocol.") and here.get(k) != usual.get(k)]
        kept = {column.metric for column in columns(rows) if column.protocol == protocol}
        where = ", ".join(
            f"{row.name} {f.metric}" for row in rows for m in sorted(kept, key=order) if (f := row.newest(m, protocol))
        )
        what = "; ".join(
            f"{k.removeprefix('protocol.')} {here.get(k, 'unknown')}, not {usual.get(k, 'unknown')}" for k in keys
        )
        if where:
            lines.append(f"({letter}) not comparable with the rest: {where} ({what})")
    return lines


def lineage(rows: Sequence[Row]) -> list[str]:
    """A line for each run that is a copy of another one, or that has gone another way than it did at first."""
    lines = []
    for row in rows:
        said = row.run["tags"]
        if origin := tags.told(tags.ORIGIN, said, ORIGIN, row.name):
            lines.append(f"{row.name} is a copy of {origin['url']} and goes on from its step {origin.get('step', 0):,}")
        if about := tags.told(tags.BRANCHED, said, BRANCHED, row.name):
            what = "; ".join(f"{key} {change}" for key, change in about["changed"].items())
            lines.append(
                f"{row.name} went on from step {about['begin']:,} in attempt {about['attempt']} ({what}); what it had "
                f"done beyond is in MLflow as '{about['given up']}'"
            )
    return lines


def best(rows: Sequence[Row], column: Column) -> float | None:
    """The best value of a column with several."""
    values = [f.value for row in rows if (f := row.newest(column.metric, column.protocol)) and math.isfinite(f.value)]
    pick = max if higher_is_better(column.metric) else min
    return pick(values) if len(values) > 1 else None


def teacher_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of a run's teacher, if it is there."""
    url = row.params.get("objective.teacher", row.params.get("teacher", "None"))
    if url in ("None", "exact"):
        return None
    with contextlib.suppress(CmdistError):  # a parameter of MLflow may be anything
        url = storage.absolute(url)
    return next((r for r in rows if r.url == url), None)


def make_rows(runs: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]], uri: str) -> list[Row]:
    """Rows of training runs with the figures of their finished evaluations among `candidates`."""
    rows = []
    for run in runs:
        row = Row(run, uri, run["name"])
        for child in tags.evaluations(candidates, run["id"]):
            at = tags.count(child["tags"], "step", 0), child["start"]
            row.figures += [Figure(metric, value, *at, child["params"]) for metric, value in child["metrics"].items()]
        rows.append(row)
    return rows


def name_apart(rows: Sequence[Row]) -> None:
    """Give runs of the same name their folder's, or a number."""
    for name, count in Counter(row.name for row in rows).items():
        for number, row in enumerate([r for r in rows if r.name == name] if count > 1 else [], 1):
            parts = (row.url or "").rstrip("/").split("/")
            row.name = f"{parts[-2]}/{name}" if len(parts) > 1 and parts[-2] else f"{name} ({number})"
    for name, count in Counter(row.name for row in rows).items():
        for number, row in enumerate([r for r in rows if r.name == name] if count > 1 else [], 1):
            row.name = f"{name} ({number})"


def keep_to(rows: Sequence[Row], roots: Sequence[str]) -> int:
    """Forget every URL of a store in what MLflow says, which anybody may have written there, that is not below one of
    `roots`; how many there were. Local paths stay.
    """
    below = tuple(f"{root.rstrip('/')}/" for root in roots)
    forgotten = 0
    for row in rows:
        texts = [(row.params, "data.url"), (row.run["tags"], "cmdist.run"), *((f.params, "stem") for f in row.figures)]
        for given, key in texts:
            url = given.get(key, "")
            known = url.startswith(below) and ".." not in url.split("/")
            if ("://" in url or "::" in url or url.startswith("pipe:")) and not known:
                del given[key]
                forgotten += 1
    return forgotten
