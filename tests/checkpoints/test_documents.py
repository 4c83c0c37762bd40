"""A run's JSON files of another shape are damaged ones, each with a sentence; nothing about them is unforeseen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cmdist.checkpoints import attempt, documents, record, sealed, search
from cmdist.checkpoints.attempt import attempt_at
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import CheckpointError, Damaged, FormatError
from cmdist.system.distributed import World

LAYOUT = Layout.make([("w", (30,))])
VALUES: tuple[Any, ...] = (None, -1, 1.5, "x", [], {}, True, [None], 2**70, float("nan"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    vector = torch.arange(30.0)
    with attempt_at(str(folder), World()) as mine:
        mine.begin(0)
        saver = Saver(str(folder), "id", LAYOUT, World(), attempt=mine)
        assert saver.ready(5, last=True)
        saver.save(5, Snapshot(0, {"master": vector, "exp_avg": vector}, {0.9: vector}, {}), last=True)
        saver.wait()
    return folder


def with_value(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    children = dict(tree) if isinstance(tree, dict) else list(tree)
    children[path[0]] = with_value(children[path[0]], path[1:], value)
    return children


@pytest.mark.parametrize(
    "path",
    [("step",), ("files",), ("files", "state.json"), ("files", "state.json", "size"), ("files", "state.json", "xxh3"),
     ("files", "state.json", "blocks"), ("block_size",), ("attempt",)],
)  # fmt: skip
def test_a_commit_of_another_shape_is_damaged(run: Path, path: tuple[Any, ...]) -> None:
    where = next((run / "checkpoints").iterdir()) / "COMMIT"
    content = where.read_bytes()
    try:
        for value in VALUES:
            if path == ("files", "state.json", "xxh3") and value == "x":
                continue  # a checksum like another one: what it is of is damaged
            if path[-1] == "blocks" and value in (None, []):
                continue  # as of format 1
            if path == ("block_size",) and value == 2**70:
                continue  # all of a file is one block
            tree = json.loads(content)
            tree.pop("seal")
            where.write_bytes(sealed.seal(with_value(tree, path, value)))
            with pytest.raises((Damaged, CheckpointError)) as caught:
                search.open_checkpoint(str(run), 5).verify(["state.json"])
            assert str(run) in str(caught.value), (path, value)
    finally:
        where.write_bytes(content)


STATE = {
    "emas": [0.9], "layout": [["w", [30]]], "slices": [{"file": "a", "start": 0, "stop": 30}], "kinds": ["master"],
    "optimizer_step": 5, "world_size": 1, "zero_stage": 1,
    "loss_scale": {"value": 1.0, "dynamic": False, "good_steps": 0},
    "clock": {"started_at": 0.0, "useful": 1.0, "saved_at": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(set(STATE) - {"kinds"}))
def test_a_state_of_another_shape_is_damaged(key: str) -> None:
    documents.TRAINED.check(STATE, "state.json")
    for value in (*VALUES, [[1]], [{"file": "../a", "start": 0, "stop": 30}], [["w", 30]], {"value": 1.0}):
        if type(value) is type(STATE[key]) and value in ([], 2**70) and key != "optimizer_step":
            continue
        if (key == "emas" and value == []) or (value in (1.5, -1) and key == "nothing"):
            continue
        with pytest.raises(Damaged, match=rf"^state.json is damaged: {key}"):
            documents.TRAINED.check(STATE | {key: value}, "state.json")


@pytest.mark.parametrize(
    "change", [{"id": 3}, {"tracking_uri": None}, {"origins": {}}, {"pins": []}, {"committed": -1}]
)
def test_a_run_json_of_another_shape_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    known = {"id": "a", "tracking_uri": "none", "experiment": "e"}
    (tmp_path / "run.json").write_bytes(sealed.seal(known | change))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged: .*; without it nobody knows which run this is"):
        record.read(str(tmp_path))
    (tmp_path / "run.json").write_bytes(sealed.seal(known | {"format": "new"}))
    with pytest.raises(FormatError, match="format 'new' is none"):
        record.read(str(tmp_path))


@pytest.mark.parametrize("content", [{"pid": "x"}, {"started": []}, {"host": 3}, {}])
def test_a_claim_of_another_shape_is_one_of_which_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    monkeypatch.setattr(attempt, "SILENCE", 0.2)
    monkeypatch.setattr(attempt, "BEAT", 0.05)
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "000001").write_bytes(sealed.seal(content))
    attempt.refuse_in_use(str(tmp_path))
    (tmp_path / "attempts" / "000001.start").write_bytes(sealed.seal({"starts": [[1]]}))
    assert attempt.known(str(tmp_path)).starts == ()


def test_a_step_that_never_was_has_another_sentence_than_one_that_was_not_finished(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\d* has no checkpoint of step 6; it has step 5$"):
        search.open_checkpoint(str(run), 6)
    (run / "checkpoints" / "step-0000000009-0001").mkdir()
    (run / "checkpoints" / "step-0000000009-0001" / "state.json").touch()
    with pytest.raises(CheckpointError, match="step-0000000009-0001 has no COMMIT: it was never finished"):
        search.open_checkpoint(str(run), 9)


def test_another_network_of_as_many_weights_is_told_apart() -> None:
    other = Layout.make([("w", (10, 3))])
    assert LAYOUT.difference(other) == "w is [30] there and [10, 3] here (30 and 30 weights)"
    assert LAYOUT.difference(Layout.make([("v", (30,))])) == "w is [30] there and missing here (30 and 30 weights)"
    assert LAYOUT.difference(LAYOUT) == ""
