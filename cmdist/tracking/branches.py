"""When an attempt goes another way than the one before it: the run in MLflow is made anew, up to where they part.

MLflow neither deletes a point nor changes a parameter. So the steps that were given up stay in the run that has them,
which is renamed and loses its key, and a new one with the key takes over what both ways have in common. An attempt that
repeats the steps of a killed one goes the same way: nothing is made anew for that.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cmdist.tracking import tags

KEY = "cmdist.key"
PARENT = "mlflow.parentRunId"
GIVEN_UP = "cmdist.given_up"  # on the old run: when and why
BRANCH = "cmdist.branch"  # on the new run: KEY:ATTEMPT
FROM = "cmdist.branched_from"  # on the new run: MLflow's id of the old one
BRANCHED = "cmdist.branched"  # on the new run, last of all, as JSON: attempt, begin, changed, name of the old run
ORIGIN = "cmdist.origin"  # on a copy's run, as JSON: id, url, step

BATCH = 1000  # metrics of one request, MLflow's limit
_PARAMS = re.compile(r"params of attempt (\d{1,15})")
_TOLERANCE = 0.01  # of a loss, relative: a repetition on GPUs or by other ranks differs by less within a few steps
_LEARNED = (
    "objective", "optimizer.", "loss.", "curriculum.", "noise.", "network.", "teacher", "init", "run.seed", "data.flip",
    "train.precision",
)  # fmt: skip


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """'old -> new' of the parameters that change what is learned, by name."""
    return {
        key: f"{before[key]} -> {value}"
        for key, value in after.items()
        if key.startswith(_LEARNED) and before.get(key, value) != value
    }


def apart(before: float, after: float) -> bool:
    """Whether two losses of the same step cannot be a repetition."""
    if math.isnan(before) or math.isnan(after):
        return math.isnan(before) != math.isnan(after)
    return before != after and not math.isclose(before, after, rel_tol=_TOLERANCE)


def params_of(run: Any) -> dict[str, str]:
    """The parameters of a run's newest attempt: those of the first, and what was changed since."""
    params = dict(run.data.params)
    by_attempt = {key: match[1] for key in run.data.tags if (match := _PARAMS.fullmatch(key))}
    for key in sorted(by_attempt, key=lambda key: int(by_attempt[key])):
        params |= tags.told(tags.CHANGED, run.data.tags, key, run.info.run_id) or {}
    return params


def find(client: Any, experiment: str, key: str) -> Any | None:
    """The run of a key. Of two, after a branching that was cut short, the one that branched off last."""
    runs = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=10)
    return max(runs, key=_branched, default=None)


def _branched(run: Any) -> int:
    """The attempt that branched off; 0: none."""
    return tags.count({"attempt": run.data.tags.get(BRANCH, "").rpartition(":")[2]}, "attempt", 0)


def cut_short(run: Any, record: Mapping[str, Any]) -> str | None:
    """MLflow's id of the run that this one was to take the place of, if that attempt's branching was not finished."""
    said = run.data.tags
    unfinished = said.get(BRANCH) == f"{record['key']}:{record['attempt']}" and BRANCHED not in said
    return said.get(FROM) if unfinished else None


def branch_off(client: Any, old: Any, record: Mapping[str, Any], why: Mapping[str, str]) -> Any:
    """A run that has what `old` has up to the attempt's `begin`, and its key. May be cut short and called again."""
    experiment, key, attempt, begin = old.info.experiment_id, record["key"], record["attempt"], record["begin"]
    branch = f"{key}:{attempt}"
    runs = client.search_runs([experiment], f"tags.`{BRANCH}` = '{branch}'", max_results=1)
    new = runs[0] if runs else None
    if new is None:
        new = client.create_run(
            experiment,
            start_time=old.info.start_time,
            run_name=record["name"],
            tags={BRANCH: branch, FROM: old.info.run_id},
        )
    for name in old.data.metrics:
        there = {point.step for point in client.get_metric_history(new.info.run_id, name)} if runs else set()
        # those of the node go by seconds, not by steps
        points = [
            point
            for point in client.get_metric_history(old.info.run_id, name)
            if (point.step <= begin or name.startswith("system/")) and point.step not in there
        ]
        for first in range(0, len(points), BATCH):
            client.log_batch(new.info.run_id, metrics=points[first : first + BATCH])
    for child in _children(client, experiment, old.info.run_id):
        if tags.count(child.data.tags, "step", 0) <= begin:
            client.set_tag(child.info.run_id, PARENT, new.info.run_id)
    title = f"{record['name']} (given up after step {begin})"
    client.set_tag(new.info.run_id, KEY, key)  # from here on `find` gives the new one
    client.set_tag(old.info.run_id, GIVEN_UP, f"attempt {attempt} went on from step {begin}: {json.dumps(dict(why))}")
    client.set_tag(old.info.run_id, "mlflow.runName", title)
    if KEY in old.data.tags:
        client.delete_tag(old.info.run_id, KEY)
    client.set_terminated(old.info.run_id, "KILLED")
    about = {"attempt": attempt, "begin": begin, "changed": dict(why), "given up": title}
    client.set_tag(new.info.run_id, BRANCHED, json.dumps(about))
    return client.get_run(new.info.run_id)


def _children(client: Any, experiment: str, run_id: str) -> Sequence[Any]:
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{PARENT}` = '{run_id}'", max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs
