"""Runs, parameters and metrics by step in MLflow, of which this is the only door.

Training never talks to the tracking server. It appends to a journal on the disk (journal.py), and a courier process of
low priority delivers that: a dead or slow server, a slow import or a full queue costs the loop nothing, and what was
not delivered is delivered by the courier of the next start, or by `deliver`. A point (metric, step) that MLflow has
already is left out: a delivery that is repeated after a kill changes nothing, nor do the steps that a run repeats on a
node without its journal. The courier also measures the machine, as it sits where rank 0 does.

A run is known by its `key`, a random word made when the run folder is made, because MLflow's own id only exists once
the server has answered.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmdist.errors import CmdistError
from cmdist.system import storage
from cmdist.tracking.journal import LONGEST, Journal, Record
from cmdist.tracking.journal import Tracker as Tracker  # what the training uses

_KEY = "cmdist.key"
_EVALUATION = "cmdist.evaluation"
_PARENT = "mlflow.parentRunId"
_BATCH = 1000  # metrics of one request, MLflow's limit


class TrackingError(CmdistError):
    """The tracking server did not answer or refused."""


def spool_folder(run_url: str) -> Path:
    """Where a run's points wait for MLflow: in its folder, or in the user's cache if that is an object store."""
    local = storage.local_path(run_url)
    if local is not None:
        return local / "tracking"
    return Path.home() / ".cache" / "cmdist" / "tracking" / hashlib.sha256(run_url.encode()).hexdigest()[:16]


class Delivery:
    """Moves the records of a journal to MLflow, in order; `step` raises what the server raises, and may then be called
    again.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._cursor = journal.cursor()
        self._client: Any = None
        self._there: dict[str, set[int]] = {}  # steps that MLflow has of each metric that we have met
        self.status: str | None = None  # what the last delivered record says of the run

    def step(self) -> bool:
        """Deliver one request's worth; False if nothing was left."""
        records = list(self.journal.read(self._cursor["place"], limit=200))
        if not records:
            return False
        self.journal.sync()
        first = records[0][0]
        if first["kind"] == "start":
            self._start(first)
            used = 1
        elif first["kind"] == "metrics":
            used = self._metrics([record for record, _ in records])
        else:
            self._other(first)
            used = 1
        if used:
            self._cursor["place"] = records[used - 1][1]
            self.journal.set_cursor(self._cursor)
        return True

    def _start(self, record: Record) -> None:
        newest = [r for r, _ in self.journal.read() if r["kind"] == "start"][-1]  # it knows where the store is now
        self._client = _client(newest["uri"])
        experiment = _experiment(self._client, newest["uri"], newest["experiment"])
        run = _find(self._client, experiment, record["key"])
        if run is None and record["attempt"] > 1 and self._cursor.get("again") != record["attempt"]:
            raise StoreGone(record["attempt"])
        if run is None:
            run = self._client.create_run(
                experiment, start_time=record["time"], run_name=record["name"], tags={_KEY: record["key"]}
            )
        self._cursor |= {"uri": newest["uri"], "run_id": run.info.run_id}
        self._there = {}
        known = run.data.params
        _set(
            self._client,
            run.info.run_id,
            {k: v for k, v in record["params"].items() if k not in known},
            record["tags"] | {"attempts": str(record["attempt"])},
        )
        changed = {k: v for k, v in record["params"].items() if known.get(k, v) != v}
        if changed:  # parameters are immutable in MLflow
            self._client.set_tag(run.info.run_id, f"params of attempt {record['attempt']}", json.dumps(changed))
        self._client.update_run(run.info.run_id, status="RUNNING")
        self.status = "RUNNING"

    def _metrics(self, records: Sequence[Record]) -> int:
        from mlflow.entities import Metric

        client, run_id = self._connected(), self._cursor["run_id"]
        batch: dict[tuple[str, int], Any] = {}
        for used, record in enumerate(records):  # noqa: B007
            points = record["values"] if record["kind"] == "metrics" else {}
            if not points or (batch and len(batch) + len(points) > _BATCH):
                break
            for key in points.keys() - self._there.keys():
                self._there[key] = {point.step for point in client.get_metric_history(run_id, key)}
            for key, value in points.items():
                if record["step"] not in self._there[key]:
                    batch.setdefault((key, record["step"]), Metric(key, value, record["time"], record["step"]))
        else:
            used = len(records)
        client.log_batch(run_id, metrics=list(batch.values()))
        for key, step in batch:
            self._there[key].add(step)
        return used

    def _other(self, record: Record) -> None:
        client, run_id = self._connected(), self._cursor["run_id"]
        if record["kind"] == "end":
            client.set_terminated(run_id, record["status"], record["time"])
            self.status = record["status"]
        elif Path(record["path"]).exists():
            client.log_artifact(run_id, record["path"], record["folder"] or None)
        else:
            print(f"artifact {record['path']} is gone", file=sys.stderr)

    def _connected(self) -> Any:
        if self._client is None:
            self._client = _client(self._cursor["uri"])
        return self._client

    def again(self, attempt: int) -> None:
        """Begin at the first record because `attempt` found a store without its run."""
        self._cursor = {"place": 0, "again": attempt}

    def killed(self) -> None:
        """Say that the run's process is gone."""
        self._connected().set_terminated(self._cursor["run_id"], "KILLED")


class StoreGone(Exception):
    """The run is not in the store although an earlier attempt put it there: somebody removed the store or took
    another.
    """


def _client(uri: str) -> Any:
    """An MLflow client that gives up soon (we try again ourselves), is silent and sends nothing to anyone else."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
        ("MLFLOW_LOGGING_LEVEL", "ERROR"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    with _one_at_a_time(uri):  # the first one makes the tables
        return MlflowClient(uri)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:///"):
        yield
        return
    import fcntl

    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _experiment(client: Any, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    with _one_at_a_time(uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            location = (
                str(Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts")
                if uri.startswith("sqlite:///")
                else None
            )
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def _find(client: Any, experiment: str, key: str, tag: str = _KEY) -> Any | None:
    found = client.search_runs([experiment], f"tags.`{tag}` = '{key}'", max_results=1)
    return found[0] if found else None


def _set(client: Any, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    entries = [Param(k, v) for k, v in params.items()]
    for first in range(0, max(len(entries), 1), 100):  # MLflow's limit
        client.log_batch(
            run_id,
            params=entries[first : first + 100],
            tags=[RunTag(k, v) for k, v in tags.items()] if first == 0 else [],
        )


def log_evaluation(
    uri: str,
    experiment: str,
    key: str,
    identity: str,
    step: int,
    when: int,
    metrics: Mapping[str, float],
    params: Mapping[str, object],
    artifacts: Sequence[Path] = (),
) -> None:
    """Write figures into the run `key` at the checkpoint's step, and into a child run that holds their protocol as
    parameters.

    `identity` names the figures: logging them again does nothing. `when` is their time in ms. Raises TrackingError.
    """
    try:
        from mlflow.entities import Metric

        client = _client(uri)
        experiment_id = _experiment(client, uri, experiment)
        run = _find(client, experiment_id, key)
        if run is None:
            raise TrackingError(f"the run with key {key} is not in experiment '{experiment}' of {uri}")
        child = _find(client, experiment_id, identity, _EVALUATION)
        if child is not None and child.info.status == "FINISHED":
            return
        if child is None:
            tags = {_EVALUATION: identity, _PARENT: run.info.run_id, "step": str(step)}
            child = client.create_run(
                experiment_id, start_time=when, run_name=f"step {step}: {', '.join(metrics)}", tags=tags
            )
        points = [Metric(name, value, when, step) for name, value in metrics.items()]
        for target in (run.info.run_id, child.info.run_id):
            client.log_batch(target, metrics=points)
        _set(client, child.info.run_id, {k: str(v)[:LONGEST] for k, v in params.items()}, {})
        for path in artifacts:
            for target in (run.info.run_id, child.info.run_id):
                client.log_artifact(target, str(path), "samples")
        client.set_terminated(child.info.run_id, "FINISHED")
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"{uri} did not take the figures: {type(error).__name__}: {error}") from error


def runs(uri: str, experiment: str) -> list[dict[str, Any]]:
    """All runs of an experiment as plain dicts; an evaluation's `parent` is the id of its run. Raises TrackingError."""
    try:
        _client(uri)
        import mlflow

        mlflow.set_tracking_uri(uri)
        found = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    except Exception as error:
        raise TrackingError(f"{uri} cannot be searched: {type(error).__name__}: {error}") from error
    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "key": run.data.tags.get(_KEY),
            "parent": run.data.tags.get(_PARENT),
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "tags": dict(run.data.tags),
        }
        for run in found
    ]


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in order of step."""
    points = _client(uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)
