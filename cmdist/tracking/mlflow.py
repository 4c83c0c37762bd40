"""Runs, parameters and metrics by step in MLflow, of which this is the only door.

Training never talks to the tracking server. It appends to a journal on the disk (journal.py), and a courier process of
low priority delivers that: a dead or slow server, a slow import or a full queue costs the loop nothing, and what was
not delivered is delivered by the courier of the next start, or by `deliver`. A point (metric, step) that MLflow has
already is left out: a delivery that is repeated after a kill changes nothing, nor do the steps that a run repeats. An
attempt that does not repeat them but goes another way makes the run anew (branches.py). The courier also measures the
machine, as it sits where rank 0 does.

A run is known by its `key`, a random word made when the run folder is made, because MLflow's own id only exists once
the server has answered.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cmdist.errors import CmdistError, ConfigError
from cmdist.system import collector, locks, storage, urls
from cmdist.tracking import branches
from cmdist.tracking.branches import KEY, PARENT
from cmdist.tracking.journal import LONGEST
from cmdist.tracking.journal import Tracker as Tracker  # what the training uses

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SCHEMES = ("http", "https", *_DATABASES)
_EVALUATION = "cmdist.evaluation"
STUDY = "cmdist.study"  # on the parent of a study's runs: its name


class TrackingError(CmdistError):
    """The tracking server did not answer or refused."""


def spool_folder(run_url: str) -> Path:
    """Where a run's points wait for MLflow: in its folder, or in the user's cache if that is an object store."""
    local = storage.local_path(run_url)
    if local is not None:
        return local / "tracking"
    return Path.home() / ".cache" / "cmdist" / "tracking" / hashlib.sha256(run_url.encode()).hexdigest()[:16]


def check(uri: str) -> None:
    """Raise ConfigError for an address that MLflow can never be reached at; whether it answers now is not asked."""
    urls.refuse_secrets(uri)
    scheme, colon, rest = uri.partition("://")
    if uri == "none" or scheme == "databricks" or (colon and scheme == "file"):
        return
    problem = (
        "" if colon and rest.strip("/") and scheme.partition("+")[0] in _SCHEMES else "nothing of MLflow's is there"
    )
    if not problem and scheme == "sqlite":
        problem = _of_sqlite(rest)
    elif not problem:
        try:
            port = urlsplit(uri).port  # raises, if it is none
            problem = "" if urlsplit(uri).hostname and port != 0 else "it names no host"
        except ValueError as error:
            problem = str(error)
    if problem:
        raise ConfigError(
            f"tracking.uri = {uri}: {problem}; http://HOST:PORT, https://HOST, sqlite:////PATH/mlflow.db or another "
            "database's URL is allowed, and 'none' tracks nothing"
        )


def _of_sqlite(rest: str) -> str:
    """What is wrong with a database's path, if anything."""
    path = Path(rest.removeprefix("/"))
    if not rest.startswith("/") or path.name in ("", ".", ".."):
        return "a file is needed behind sqlite:///"
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if path.is_dir() or not (there.is_dir() or there == path):
        return f"{there} is no {'file' if path.is_dir() else 'folder'}"
    if strange := [c for c in "%?#" if c in rest]:
        return f"MLflow cannot have '{strange[0]}' in the path of its database"
    if there == path and not path.is_file():
        return f"{path} is no file"
    if there == path and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                return f"{path} is no SQLite file"
    return "" if os.access(there, os.W_OK) else f"{there} may not be written to"


def prepare(scheme: str = "") -> None:
    """Import MLflow, in seconds, as a client that gives up soon, is silent and sends nothing to anyone else;
    with a store's scheme also what only a database needs.
    """
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
        ("MLFLOW_LOGGING_LEVEL", "ERROR"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    database = scheme.partition("+")[0] in _DATABASES
    collector.imported("mlflow.tracking", *(["mlflow.store.tracking.sqlalchemy_store"] if database else []))


def connect(uri: str) -> Any:
    """An MLflow client that gives up soon: we try again ourselves."""
    check(uri)
    prepare()
    from mlflow.tracking import MlflowClient

    with _one_at_a_time(uri):  # the first one makes the tables
        return MlflowClient(uri)


def refuse_missing(uri: str) -> None:
    """Raise TrackingError for an SQLite file that is not there, which MLflow would make."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise TrackingError(f"{uri} is not there")


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    lock = database.with_suffix(".lock")
    if database.exists() and database.stat().st_size and not lock.exists():  # nobody is making it: it is only read
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        locks.take(file.fileno(), f"making the tables of {database}", 120.0)
        yield


def experiment_of(client: Any, uri: str, name: str) -> str:
    """The id of an experiment, which is made if needed."""
    from mlflow.exceptions import MlflowException

    with _one_at_a_time(uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = (
                str(Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts")
                if uri.startswith("sqlite:///")
                else None
            )
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException:  # another process was faster
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)


def _evaluation(client: Any, experiment: str, identity: str) -> Any | None:
    children = client.search_runs([experiment], f"tags.`{_EVALUATION}` = '{identity}'", max_results=1)
    return children[0] if children else None


def describe(client: Any, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Set parameters and tags of a run."""
    from mlflow.entities import Param, RunTag

    entries = [Param(k, v) for k, v in params.items()]
    for first in range(0, max(len(entries), 1), 100):  # MLflow's limit
        client.log_batch(
            run_id,
            params=entries[first : first + 100],
            tags=[RunTag(k, v) for k, v in tags.items()] if first == 0 else [],
        )


def point(key: str, value: float, when: int, step: int) -> Any:
    """A value of a metric at a step, as MLflow takes it; `when` in ms since 1970."""
    from mlflow.entities import Metric

    return Metric(key, value, when, step)


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
    """Write figures into the run `key` at the checkpoint's step,
    and into a child run that holds their protocol as parameters.

    `identity` names the figures: logging them again does nothing. `when` is their time in ms. Raises TrackingError.
    """
    try:
        client = connect(uri)
        experiment_id = experiment_of(client, uri, experiment)
        run = branches.find(client, experiment_id, key)
        if run is None:
            raise TrackingError(f"the run with key {key} is not in experiment '{experiment}' of {uri}")
        child = _evaluation(client, experiment_id, identity)
        if child is not None and child.info.status == "FINISHED":
            return
        if child is None:
            tags = {_EVALUATION: identity, PARENT: run.info.run_id, "step": str(step)}
            child = client.create_run(
                experiment_id, start_time=when, run_name=f"step {step}: {', '.join(metrics)}", tags=tags
            )
        points = [point(name, value, when, step) for name, value in metrics.items()]
        for target in (run.info.run_id, child.info.run_id):
            client.log_batch(target, metrics=points)
        describe(client, child.info.run_id, {k: str(v)[:LONGEST] for k, v in params.items()}, {})
        for path in artifacts:
            for target in (run.info.run_id, child.info.run_id):
                client.log_artifact(target, str(path), "samples")
        client.set_terminated(child.info.run_id, "FINISHED")
    except CmdistError:
        raise
    except Exception as error:
        raise TrackingError(f"{uri} did not take the figures: {type(error).__name__}: {error}") from error


def metric_name(text: str) -> str:
    """A name that MLflow takes: other characters than its own become underscores."""
    return re.sub(r"[^\w\-. /]", "_", text)[:250]


def log_study(
    uri: str,
    experiment: str,
    name: str,
    title: str,
    keys: Sequence[str],
    metrics: Mapping[str, float],
    artifacts: Sequence[Path],
    when: int,
) -> str:
    """Write a study: a run of its own, which becomes the parent of the runs `keys` that have none; its id in MLflow.

    A second time its metrics get further points and its artifacts are replaced. `when` is in ms. Raises TrackingError.
    """
    try:
        client = connect(uri)
        experiment_id = experiment_of(client, uri, experiment)
        same = client.search_runs([experiment_id], f"tags.`{STUDY}` = '{name}'", max_results=1)
        study = same[0] if same else client.create_run(experiment_id, run_name=name, tags={STUDY: name})
        parent = str(study.info.run_id)
        client.set_tag(parent, "mlflow.note.content", title)
        for key in keys:
            run = branches.find(client, experiment_id, key)
            if run is not None and PARENT not in run.data.tags:
                client.set_tag(run.info.run_id, PARENT, parent)
        points = [point(metric, value, when, 0) for metric, value in metrics.items()]
        for first in range(0, len(points), branches.BATCH):
            client.log_batch(parent, metrics=points[first : first + branches.BATCH])
        for path in artifacts:
            client.log_artifact(parent, str(path))
        client.set_terminated(parent, "FINISHED")
    except CmdistError:
        raise
    except Exception as error:
        raise TrackingError(f"{uri} did not take the study: {type(error).__name__}: {error}") from error
    return parent


def runs(uri: str, experiment: str) -> list[dict[str, Any]]:
    """All runs of an experiment as plain dicts; an evaluation's `parent` is the id of its run, a run's `study` that of
    the study that made it. Raises TrackingError.
    """
    try:
        client = connect(uri)  # and not mlflow.search_runs, which needs a global URI and leaves it in the environment
        of_name = client.get_experiment_by_name(experiment)
        rows, token = [], None if of_name is None else ""
        while token is not None:
            page = client.search_runs([of_name.experiment_id], max_results=1000, page_token=token or None)
            rows += page
            token = page.token or None
    except CmdistError:
        raise
    except Exception as error:
        raise TrackingError(f"{uri} cannot be searched: {type(error).__name__}: {error}") from error
    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "key": run.data.tags.get(KEY),
            "parent": None if _trained(run.data.tags) else run.data.tags.get(PARENT),
            "study": run.data.tags.get(PARENT) if _trained(run.data.tags) else None,
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "tags": dict(run.data.tags),
        }
        for run in rows
    ]


def _trained(tags: Mapping[str, str]) -> bool:
    return KEY in tags or branches.GIVEN_UP in tags


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in order of step."""
    points = connect(uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)
