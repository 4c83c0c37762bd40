"""A damaged cursor or line of a journal loses nothing, and nobody's tags in MLflow stop a comparison."""

from pathlib import Path

import pytest

from cmdist.report import comparison
from cmdist.tracking import mlflow as tracking
from cmdist.tracking import tags
from cmdist.tracking.branches import BRANCHED, ORIGIN
from cmdist.tracking.journal import Journal

LINES = (
    b"5", b"null", b"[]", b'"start"', b'{"kind": "start"}', b'{"kind": ["x"]}', b"\xff\xfe", b"{",
    b'{"kind": "metrics", "time": 1, "step": "2", "values": {}}', b'{"kind": "end", "time": 1, "status": "DONE"}',
)  # fmt: skip


@pytest.mark.parametrize("content", ["", "{", "[]", '{"place": -5}', '{"place": "9"}', '{"place": 99999}', "\0" * 30])
def test_a_damaged_cursor_delivers_all_again(tmp_path: Path, content: str) -> None:
    """It was empty after a power cut."""
    journal = Journal(tmp_path)
    journal.append({"kind": "metrics", "time": 0, "step": 1, "values": {"loss": 1.0}})
    (tmp_path / "cursor.json").write_text(content)
    assert journal.cursor() == {"place": 0}
    journal.set_cursor({"place": 10, "run_id": "a"})
    assert journal.cursor() == {"place": 10, "run_id": "a"}


def test_lines_of_another_shape_are_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step, line in enumerate(LINES):
        with (tmp_path / "points.jsonl").open("ab") as file:
            file.write(line + b"\n")
        journal.append({"kind": "metrics", "time": 0, "step": step, "values": {"loss": float("nan")}})
    found = [record["step"] for record, _ in journal.read()]
    assert found == list(range(len(LINES)))


@pytest.mark.parametrize(
    "uri",
    ["127.0.0.1:5000", "localhost", "mlruns", "http://", "http://host:port", "http://host:0", "http://host:99999",
     "ftp://host", "sqlite://mlflow.db", "sqlite:///", "sqlite:////", "sqlite:////proc/version/x.db", ""],
)  # fmt: skip
def test_an_address_that_can_never_work_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="tracking.uri = .*is allowed, and 'none' tracks nothing|names no place"):
        tracking.check(uri)


@pytest.mark.parametrize(
    "uri", ["none", "http://host:5000", "https://mlflow.example", "sqlite:////tmp/a/b/x.db", "sqlite:///x.db",
            "postgresql+psycopg2://db.example/mlflow", "databricks://profile"],
)  # fmt: skip
def test_addresses_that_may_work_are_allowed(uri: str) -> None:
    tracking.check(uri)


def test_numbers_and_json_in_tags_may_be_anything(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "x", "-1", "1.5", "9" * 20, "²", " 3"):
        assert tags.count({"step": text}, "step", 7) == 7
    assert tags.count({"step": "30"}, "step", 7) == 30 and tags.count({}, "step", 7) == 7
    run = {"id": "r", "name": "r", "start": 0, "end": None, "params": {"train.global_batch": "many"}, "metrics": {},
           "tags": {ORIGIN: "{", BRANCHED: '{"begin": "x"}', "cmdist.world_size": "two"}}  # fmt: skip
    child = {"parent": "r", "status": "FINISHED", "tags": {"step": "ten"}, "start": 0, "metrics": {"fd_1step": 1.0},
             "params": {"protocol_id": "p", "protocol.n": "x"}}  # fmt: skip
    (row,) = comparison.make_rows([run], [child], "none")
    assert comparison.lineage([row]) == [] and row.ranks == 1 and row.images_at(5) == 5.0 and row.ema == "?"
    assert row.figures[0].n == 0 and row.figures[0].step == 0
    assert capsys.readouterr().err.count("in MLflow is damaged: ") == 2
