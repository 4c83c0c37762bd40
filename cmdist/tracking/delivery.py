"""What a courier does: the records of a journal, in order, into the run of their key in MLflow."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmdist.tracking import branches, mlflow, tags
from cmdist.tracking.branches import KEY
from cmdist.tracking.journal import Journal, Record

_BEGIN = "cmdist.begin"  # the step that the newest attempt started from


class Delivery:
    """Moves the records of a journal to MLflow, in order;
    `step` raises what the server raises, and may then be called again.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._cursor = journal.cursor()
        self._client: Any = None
        self._there: dict[str, dict[int, float]] = {}  # points that MLflow has of each metric that we have met
        self._newest: tuple[int, int] | None = None  # the newest attempt that MLflow knows, and its first step
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
        elif "run_id" not in self._cursor:
            used = 1  # the line of its start is lost, and nobody knows whose it is
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
        self._client = mlflow.connect(newest["uri"])
        experiment = mlflow.experiment_of(self._client, newest["uri"], newest["experiment"])
        run = branches.find(self._client, experiment, record["key"])
        if run is None and record["attempt"] > 1 and self._cursor.get("again") != record["attempt"]:
            raise StoreGone(record["attempt"])
        if run is None:
            run = self._client.create_run(
                experiment, start_time=record["time"], run_name=record["name"], tags={KEY: record["key"]}
            )
        last, begin = tags.count(run.data.tags, "attempts", 0), record.get("begin")
        self._cursor |= {"uri": newest["uri"], "run_id": run.info.run_id}
        self._cursor |= {"attempt": record["attempt"], "begin": begin, "overlap": 0}
        self._newest, self._there = None, {}
        if record["attempt"] < last:  # this journal was out of reach while another node went on
            return
        if old_id := branches.cut_short(run, record):
            old = self._client.get_run(old_id)
            self._branch(old, record, branches.changed(branches.params_of(old), record["params"]))
            return
        if record["attempt"] > last > 0 and begin is not None:
            self._cursor["overlap"] = max(self._known("loss"), default=0)
            why = branches.changed(branches.params_of(run), record["params"])
            if why and self._cursor["overlap"] > begin:
                self._branch(run, record, why)
                return
        self._describe(run, record)

    def _describe(self, run: Any, record: Record) -> None:
        """Parameters and tags of the attempt that begins."""
        known = run.data.params
        mlflow.describe(
            self._client,
            run.info.run_id,
            {k: v for k, v in record["params"].items() if k not in known},
            record["tags"] | {"attempts": str(record["attempt"]), _BEGIN: str(record.get("begin", 0))},
        )
        changed = {k: v for k, v in record["params"].items() if known.get(k, v) != v}
        if changed:  # parameters are immutable in MLflow
            self._client.set_tag(run.info.run_id, f"params of attempt {record['attempt']}", json.dumps(changed))
        self._client.update_run(run.info.run_id, status="RUNNING")
        self.status = "RUNNING"

    def _branch(self, run: Any, record: Record, why: Mapping[str, str]) -> None:
        """Make the run anew up to where the attempt that is delivered begins."""
        new = branches.branch_off(self._connected(), run, record, why)
        self._cursor |= {"run_id": new.info.run_id, "overlap": 0}
        self._there = {}
        self._describe(new, record)

    def _known(self, key: str) -> dict[int, float]:
        """(step: value) of a metric, as MLflow has it."""
        if key not in self._there:
            points = self._connected().get_metric_history(self._cursor["run_id"], key)
            self._there[key] = {point.step: point.value for point in points}
        return self._there[key]

    def _metrics(self, records: Sequence[Record]) -> int:
        client, run_id = self._connected(), self._cursor["run_id"]
        begin, overlap = self._cursor.get("begin"), self._cursor.get("overlap", 0)
        batch: dict[tuple[str, int], Any] = {}
        for used, record in enumerate(records):  # noqa: B007
            if record["kind"] != "metrics" or (batch and len(batch) + len(record["values"]) > branches.BATCH):
                break
            points, step = record["values"], record["step"]
            if "loss" in points and begin is not None and begin < step <= overlap:
                was = self._known("loss").get(step)
                if was is not None and branches.apart(was, points["loss"]):
                    why = {"loss": f"{was:.6g} -> {points['loss']:.6g} at step {step}"}
                    self._branch(client.get_run(run_id), self._begun(), why)
                    return 0  # the same records again, into the new run
            for key, value in points.items():
                overtaken = self._overtaken and step > self._from_there and not key.startswith("system/")
                if step not in self._known(key) and not overtaken:
                    batch.setdefault((key, step), mlflow.point(key, value, record["time"], step))
        else:
            used = len(records)
        client.log_batch(run_id, metrics=list(batch.values()))
        for (key, step), point in batch.items():
            self._there[key][step] = point.value
        return used

    @property
    def _overtaken(self) -> bool:
        """Whether MLflow knows a later attempt, on another node, than the one that is delivered."""
        if self._newest is None:
            said = self._connected().get_run(self._cursor["run_id"]).data.tags
            self._newest = tags.count(said, "attempts", 0), tags.count(said, _BEGIN, 0)
        return self._cursor.get("attempt", self._newest[0]) < self._newest[0]

    @property
    def _from_there(self) -> int:
        """The step that the newest attempt has started from."""
        return self._newest[1] if self._newest else 0

    def _begun(self) -> Record:
        """The record of the start whose points are delivered."""
        starts = [r for r, _ in self.journal.read() if r["kind"] == "start"]
        return [r for r in starts if r["attempt"] == self._cursor["attempt"]][-1]

    def _other(self, record: Record) -> None:
        client, run_id = self._connected(), self._cursor["run_id"]
        if record["kind"] == "end":
            if self._overtaken:
                return
            client.set_terminated(run_id, record["status"], record["time"])
            self.status = record["status"]
        elif (path := self._own(record["path"])) is not None:
            client.log_artifact(run_id, str(path), record["folder"] or None)
        else:
            print(f"artifact {record['path']} is gone, or none of this run", file=sys.stderr)

    def _own(self, path: str) -> Path | None:
        """A file of the journal's folder, or of the run folder it lies in; others are not uploaded, whatever a line
        says.
        """
        folder, file = self.journal.folder.resolve(), Path(path).resolve()
        own = folder.parent if (folder.parent / "run.json").is_file() else folder
        return file if file.is_file() and file.is_relative_to(own) else None

    def _connected(self) -> Any:
        if self._client is None:
            self._client = mlflow.connect(self._cursor["uri"])
        return self._client

    def again(self, attempt: int) -> None:
        """Begin at the first record because `attempt` found a store without its run."""
        self._cursor = {"place": 0, "again": attempt}

    def killed(self) -> None:
        """Say that the run's process is gone."""
        self._connected().set_terminated(self._cursor["run_id"], "KILLED")


class StoreGone(Exception):
    """The run is not in the store although an earlier attempt put it there:
    somebody removed the store or took another.
    """
