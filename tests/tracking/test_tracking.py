import gc
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cmdist.errors import CmdistError, ConfigError
from cmdist.tracking import courier
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.journal import Courier, Journal, Watch, now
from cmdist.tracking.mlflow import Tracker
from runs import add_store


def start(
    folder: Path,
    uri: str | None = None,
    courier: bool = False,
    params: dict[str, object] | None = None,
    attempt: int = 1,
    spool: str = "tracking",
) -> Tracker:
    if uri is None:
        add_store(folder)
        uri = f"sqlite:///{folder}/mlflow.db"
    params, tags = params or {"lr": 0.1}, {"colour": "red"}
    return Tracker.start(uri, "tests", "run", "key-1", params, tags, folder / spool, courier=courier, attempt=attempt)


def stored(folder: Path) -> list[dict]:
    return tracking.runs(f"sqlite:///{folder}/mlflow.db", "tests")


def points(folder: Path, metric: str = "loss") -> list[tuple[int, float]]:
    (run,) = [run for run in stored(folder) if run["parent"] is None]
    return tracking.history(f"sqlite:///{folder}/mlflow.db", run["id"], metric)


# --- the journal


def numbered(step):
    return {"kind": "metrics", "time": 0, "step": step, "values": {"loss": 1.0}}


def test_journal_gives_back_records_and_places(tmp_path):
    journal = Journal(tmp_path / "j")
    for number in range(5):
        journal.append(numbered(number))
    found = list(journal.read())
    assert [record["step"] for record, _ in found] == [0, 1, 2, 3, 4]
    assert [record["step"] for record, _ in journal.read(found[1][1], limit=2)] == [2, 3]
    assert list(journal.read(found[-1][1])) == []


def test_journal_skips_a_line_cut_short_by_a_kill_and_goes_on_behind_it(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(numbered(0))
    journal.close()
    with (tmp_path / "j" / "points.jsonl").open("ab") as file:
        file.write(b'{"numb')
    assert [record["step"] for record, _ in journal.read()] == [0]
    again = Journal(tmp_path / "j")
    again.append(numbered(1))
    again.append(numbered(2))
    assert [record["step"] for record, _ in again.read()] == [0, 1, 2]


def test_journal_lock_belongs_to_one_and_ends_with_its_process(tmp_path):
    journal = Journal(tmp_path / "j")
    with journal.lock() as first, Journal(tmp_path / "j").lock() as second:
        assert first and not second
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path,))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with journal.lock() as held:
        assert not held
    holder.kill()
    holder.join()
    with journal.lock() as held:
        assert held


def test_a_courier_does_not_wait_for_its_turn_without_end(tmp_path, monkeypatch, capsys):
    journal = Journal(tmp_path / "j")
    monkeypatch.setattr(courier, "_TURN", 0.2)
    monkeypatch.setattr(courier.signal, "signal", lambda *_: None)
    monkeypatch.setattr(courier.os, "nice", lambda _: None)
    monkeypatch.setattr(courier.os, "dup2", lambda *_: None)
    monkeypatch.setattr(courier, "_told_to_go", lambda _: tmp_path / "j")
    with journal.lock() as held:
        assert held
        courier._courier(os.getpid())
    assert "another courier has had" in capsys.readouterr().err


def _hold(folder: Path) -> None:
    with Journal(folder / "j").lock(60):
        (folder / "held").touch()
        time.sleep(60)


# --- delivery


def test_points_parameters_tags_and_artifacts_arrive_once_and_in_order(tmp_path):
    tracker = start(tmp_path)
    (tmp_path / "tracking" / "note.txt").write_text("hello")
    for step in range(300):  # more than a batch
        tracker.log(step, {"loss": 1.0 / (step + 1), "mu": step, "nan": float("nan"), "b": 1, "c": 2})
    tracker.artifact(tmp_path / "tracking" / "note.txt", "notes")
    tracker.close()
    assert courier.deliver(tmp_path / "tracking") and courier.deliver(tmp_path / "tracking")
    assert Journal(tmp_path / "tracking").cursor()["place"] == (tmp_path / "tracking" / "points.jsonl").stat().st_size
    (run,) = stored(tmp_path)
    assert (
        run["params"] == {"lr": "0.1"}
        and run["tags"]["colour"] == "red"
        and run["status"] == "FINISHED"
        and run["key"] == "key-1"
    )
    assert points(tmp_path) == [(step, 1.0 / (step + 1)) for step in range(300)]
    assert points(tmp_path, "mu") == [(step, float(step)) for step in range(300)]
    assert len(points(tmp_path, "nan")) == 300
    assert [path.read_text() for path in (tmp_path / "mlartifacts").rglob("notes/note.txt")] == ["hello"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("empty", [(0,), (2,), (4,), (0, 1, 2, 3, 4)])
def test_a_record_without_values_holds_up_nothing(tmp_path, empty):
    tracker = start(tmp_path)
    for step in range(5):
        tracker.log(step, {} if step in empty else {"loss": 1.0})
    tracker.close()
    assert courier.deliver(tmp_path / "tracking")
    assert stored(tmp_path)[0]["status"] == "FINISHED"
    kept = [(step, 1.0) for step in range(5) if step not in empty]
    assert not kept or points(tmp_path) == kept


def test_b7_no_line_of_a_journal_uploads_another_file(tmp_path, capsys):
    tracker = start(tmp_path)
    (tmp_path / "secret.txt").write_text("hunter2")
    (tmp_path / "tracking" / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in ("secret.txt", "tracking/link.txt", "tracking/../secret.txt"):
        tracker.artifact(tmp_path / path, "notes")
    tracker.close()
    assert courier.deliver(tmp_path / "tracking")
    assert not list((tmp_path / "mlartifacts").rglob("*.txt"))
    assert capsys.readouterr().err.count("is gone, or none of this run") == 3


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("{}", "nothing of MLflow's is there"),
        ("sqlite:///{}", "is no file"),
        ("sqlite:///{}/50%/mlflow.db", "MLflow cannot have '%' in the path"),
        ("sqlite:///{}/note", "is no SQLite file"),
        ("sqlite:///{}/pipe", "is no file"),
    ],
)
def test_c_a_uri_that_cannot_be_is_refused_at_once(tmp_path, uri, sentence):
    (tmp_path / "note").write_text("words, no database")
    os.mkfifo(tmp_path / "pipe")
    begin = time.monotonic()
    with pytest.raises(CmdistError, match=sentence):
        tracking.runs(uri.format(tmp_path), "tests")
    assert time.monotonic() - begin < 5


def test_b3_a_uri_with_a_password_is_refused_before_anything_connects():
    for read in (lambda uri: tracking.runs(uri, "x"), lambda uri: tracking.history(uri, "id", "loss")):
        with pytest.raises(CmdistError, match="is refused") as error:
            read("postgresql://me:hunter2@host/db")
        assert "hunter2" not in str(error.value)


def test_a_repeated_delivery_changes_nothing(tmp_path):
    tracker = start(tmp_path)
    for step in range(20):
        tracker.log(step, {"loss": step})
    assert courier.deliver(tmp_path / "tracking")
    cursor = json.loads((tmp_path / "tracking" / "cursor.json").read_text())
    (tmp_path / "tracking" / "cursor.json").write_text(
        json.dumps(cursor | {"place": 0})
    )  # killed between delivery and note
    assert courier.deliver(tmp_path / "tracking")
    assert points(tmp_path) == [(step, float(step)) for step in range(20)]
    assert len(stored(tmp_path)) == 1


def test_resume_goes_on_in_the_same_run_without_repeating_points(tmp_path):
    first = start(tmp_path)
    for step in range(10):
        first.log(step, {"loss": step})
    first.close("KILLED")
    second = start(
        tmp_path, params={"lr": 0.2, "new": 1}, attempt=2
    )  # from the checkpoint of step 5, another learning rate
    for step in range(5, 15):
        second.log(step, {"loss": step} | ({"late": 1.0} if step >= 8 else {}))
    second.close()
    assert courier.deliver(tmp_path / "tracking")
    (run,) = stored(tmp_path)
    assert points(tmp_path) == [(step, float(step)) for step in range(15)]
    assert [step for step, _ in points(tmp_path, "late")] == list(range(8, 15))
    assert run["params"] == {"lr": "0.1", "new": "1"} and run["status"] == "FINISHED"
    assert run["tags"]["attempts"] == "2" and json.loads(run["tags"]["params of attempt 2"]) == {"lr": "0.2"}


def test_a_node_without_the_journal_repeats_steps_that_are_not_stored_twice(tmp_path):
    """A run on an object store, resumed on another node: the first node's journal is out of reach, then comes back."""
    first = start(tmp_path, spool="node-a")
    for step in range(10):
        first.log(step, {"loss": step, "mu": 0.5})
    assert courier.deliver(tmp_path / "node-a")
    for step in range(10, 13):  # in the journal when the node died
        first.log(step, {"loss": step, "mu": 0.5})
    second = start(tmp_path, spool="node-b", attempt=2)
    for step in range(5, 20):  # from the checkpoint of step 5
        second.log(step, {"loss": step, "mu": 0.5} | ({"late": 1.0} if step >= 15 else {}))
    assert courier.deliver(tmp_path / "node-b")
    third = start(tmp_path, spool="node-a", attempt=3)  # back on the first node, from step 15
    for step in range(15, 25):
        third.log(step, {"loss": step, "mu": 0.5, "late": 1.0})
    third.close()
    assert courier.deliver(tmp_path / "node-a")
    (run,) = stored(tmp_path)
    assert run["tags"]["attempts"] == "3"
    database = sqlite3.connect(tmp_path / "mlflow.db")
    for metric, steps in (("loss", range(25)), ("mu", range(25)), ("late", range(15, 25))):
        rows = database.execute("select step from metrics where key = ? order by step", (metric,)).fetchall()
        assert rows == [(step,) for step in steps], metric  # the rows themselves: each point once


def test_the_node_is_measured_by_the_courier(tmp_path, monkeypatch):
    monkeypatch.setattr("cmdist.tracking.journal.SYSTEM_EVERY", 0.0)
    journal = Journal(tmp_path / "tracking")
    journal.append({"kind": "end", "time": now() - 5000, "status": "KILLED"})
    watch = Watch(journal)
    watch.look()
    (record,) = [r for r, _ in journal.read() if r["kind"] == "metrics"]
    assert record["step"] == 5 and abs(record["time"] - now()) < 2000
    memory = psutil.virtual_memory()
    assert record["values"]["system/system_memory_usage_megabytes"] == pytest.approx(memory.used / 1e6, rel=0.2)
    assert 0 <= record["values"]["system/cpu_utilization_percentage"] <= 100
    monkeypatch.setattr("cmdist.tracking.journal.SYSTEM_EVERY", 60.0)
    watch.look()
    watch.look()  # not due
    assert sum(r["kind"] == "metrics" for r, _ in journal.read()) == 2


def test_a_store_that_was_removed_is_filled_again(tmp_path):
    tracker = start(tmp_path)
    tracker.log(1, {"loss": 1})
    tracker.close()
    assert courier.deliver(tmp_path / "tracking")
    os.rename(tmp_path / "mlflow.db", tmp_path / "gone")
    start(tmp_path, f"sqlite:///{tmp_path}/other.db", attempt=2).log(2, {"loss": 2})
    assert courier.deliver(tmp_path / "tracking", patience=0)
    (run,) = tracking.runs(f"sqlite:///{tmp_path}/other.db", "tests")
    assert tracking.history(f"sqlite:///{tmp_path}/other.db", run["id"], "loss") == [(1, 1.0), (2, 2.0)]


def test_an_unusable_metric_name_is_a_mistake_of_ours(tmp_path):
    with pytest.raises(AssertionError, match="MLflow refuses"):
        start(tmp_path).log(1, {"loss[0]": 1.0})


# --- a server that is away


def _blocked(tmp_path: Path) -> Path:
    """A store that cannot be opened until the file in its way is removed."""
    (tmp_path / "store").write_text("in the way")
    return tmp_path / "store"


def test_nothing_is_lost_while_the_store_is_away(tmp_path):
    obstacle = _blocked(tmp_path)
    uri = f"sqlite:///{obstacle}/mlflow.db"
    tracker = start(tmp_path, uri)
    for step in range(50):
        tracker.log(step, {"loss": step})
    assert not courier.deliver(tmp_path / "tracking", patience=0.0)
    obstacle.unlink()
    for step in range(50, 60):
        tracker.log(step, {"loss": step})
    tracker.close()
    assert courier.deliver(tmp_path / "tracking")
    (run,) = tracking.runs(uri, "tests")
    assert tracking.history(uri, run["id"], "loss") == [(step, float(step)) for step in range(60)]


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_server_that_is_away_never_holds_up_the_training(tmp_path, kind):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "hangs":  # takes connections and never answers
            server.listen(50)
        begin = time.monotonic()
        tracker = start(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", courier=True)
        assert time.monotonic() - begin < 1.0
        slowest = 0.0
        for step in range(100):
            begin = time.monotonic()
            tracker.log(step, {"loss": step})
            slowest = max(slowest, time.monotonic() - begin)
            time.sleep(0.01)
        assert slowest < 0.25
        begin = time.monotonic()
        tracker.close(patience=0.5)
        assert time.monotonic() - begin < 2.0
    records = [record for record, _ in Journal(tmp_path / "tracking").read()]
    assert sum(record["kind"] == "metrics" for record in records) == 100
    tracker._courier.process.kill()  # it would try for a minute
    tracker._courier.process.wait()


def test_the_courier_delivers_while_the_training_goes_on_and_close_waits_for_it(tmp_path):
    tracker = start(tmp_path, courier=True)
    tracker.log(1, {"loss": 1.0})
    deadline = time.monotonic() + 60
    while Journal(tmp_path / "tracking").cursor()["place"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    tracker.log(2, {"loss": 2.0})
    tracker.close(patience=60)
    assert points(tmp_path) == [(1, 1.0), (2, 2.0)]
    assert stored(tmp_path)[0]["status"] == "FINISHED"


def test_a_courier_that_was_started_before_its_run_delivers_it(tmp_path):
    waiting = Courier()
    tracker = start(tmp_path, courier=waiting)
    assert tracker._courier is waiting
    tracker.log(1, {"loss": 1.0})
    tracker.close(patience=60)
    assert waiting.process.returncode == 0
    assert points(tmp_path) == [(1, 1.0)]


def test_a_courier_whose_run_never_began_ends():
    waiting = Courier()
    waiting.wait(60)
    assert waiting.process.returncode == 0


def test_a_courier_is_dismissed_unless_it_has_been_told_to_go(tmp_path):
    waiting = Courier()
    waiting.dismiss()
    assert waiting.process.returncode == -signal.SIGKILL
    waiting = Courier()
    tracker = start(tmp_path, courier=waiting)
    waiting.dismiss()
    tracker.log(1, {"loss": 1.0})
    tracker.close(patience=60)
    assert waiting.process.returncode == 0 and points(tmp_path) == [(1, 1.0)]


def test_a_courier_says_in_its_log_why_it_cannot_deliver(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    folder = tmp_path / "odd \n\udcff folder"
    waiting = Courier()
    folder.mkdir()
    waiting.go(folder)
    waiting.wait(60)
    assert waiting.process.returncode == 1
    assert (folder / "courier.log").read_text().endswith("ImportError: a broken installation\n")


def test_the_end_of_a_run_wakes_its_courier(tmp_path, monkeypatch):
    """Its pauses are long here; what wakes it is the pipe that the run closes."""
    script = "import runpy, sys, select\nwait = select.select\n" + (
        "select.select = lambda r, w, x, seconds: wait(r, w, x, 100 * seconds)\n"
        "runpy.run_module('cmdist.tracking.courier', run_name='__main__', alter_sys=True)"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **told: popen([command[0], "-c", script, *command[3:]], **told)
    )
    tracker = start(tmp_path, courier=True)
    deadline = time.monotonic() + 60
    while Journal(tmp_path / "tracking").cursor()["place"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # it pauses now, for 50 s
    tracker.log(1, {"loss": 1.0})
    tracker.close(patience=20)
    assert points(tmp_path) == [(1, 1.0)]
    assert tracker._courier.process.returncode == 0


def test_a_courier_that_cannot_even_begin_says_why_in_its_log(tmp_path, monkeypatch):
    """Not the first, which has no folder yet, but whoever replaces it."""
    (tmp_path / "mlflow.py").write_text("import os, sys; print('no licence', file=sys.stderr, flush=True); os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    first = Courier()
    assert first.process.wait(60) == -signal.SIGABRT
    tracker = start(tmp_path, courier=first)
    assert tracker._courier.process.wait(60) == -signal.SIGABRT
    assert (tmp_path / "tracking" / "courier.log").read_text() == "no licence\n"


def test_a_store_that_is_asked_again_and_again_makes_nothing_permanent(tmp_path):
    """Whoever waits for a server connects for days; what the collector may not look at must not grow."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.connect(uri)
    before = gc.get_freeze_count()
    tracking.connect(uri)
    tracking.prepare("sqlite")
    assert gc.get_freeze_count() == before


def test_a_courier_that_died_is_replaced(tmp_path):
    tracker = start(tmp_path, courier=True)
    first = tracker._courier
    first.process.kill()
    first.process.wait()
    tracker.log(1, {"loss": 1.0})
    assert tracker._courier is first  # not more than once a minute
    tracker._courier_started = 0.0
    tracker.log(2, {"loss": 2.0})
    assert tracker._courier is not first
    tracker.close(patience=60)
    assert points(tmp_path) == [(1, 1.0), (2, 2.0)]


_TRAINING = """
import sys, time
from pathlib import Path
from cmdist.tracking.mlflow import Tracker
folder = Path(sys.argv[1])
attempt = int(sys.argv[3])
uri = f"sqlite:///{folder}/mlflow.db"
tracker = Tracker.start(uri, "tests", "run", "key-1", {}, {}, folder / "tracking", attempt=attempt)
for step in range(int(sys.argv[2]), 100000):
    tracker.log(step, {"loss": step})
    print(step, flush=True)
    time.sleep(0.01)
"""


def _killed_training(tmp_path: Path, first: int, last: int, attempt: int) -> None:
    command = [sys.executable, "-c", _TRAINING, str(tmp_path), str(first), str(attempt)]
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        while int(process.stdout.readline()) < last:
            pass
        process.send_signal(signal.SIGKILL)


def test_a_killed_training_loses_no_point_and_goes_on_after_a_restart(tmp_path):
    _killed_training(tmp_path, 0, 20, 1)
    _killed_training(tmp_path, 10, 40, 2)  # from an earlier checkpoint; the first courier may still be at work
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the courier outlives the training and says that it was killed
        runs = stored(tmp_path)
        if runs and runs[0]["status"] == "KILLED":
            break
        time.sleep(0.2)
    found = points(tmp_path)
    assert len(found) >= 41
    assert found == [(step, float(step)) for step in range(len(found))]
    (run,) = stored(tmp_path)
    assert run["status"] == "KILLED" and run["tags"]["attempts"] == "2"


# --- evaluations


def test_evaluation_goes_into_the_run_at_its_step_and_into_a_child_with_the_protocol(tmp_path):
    tracker = start(tmp_path)
    tracker.log(100, {"loss": 1.0})
    tracker.close()
    assert courier.deliver(tmp_path / "tracking")
    (tmp_path / "grid.png").write_bytes(b"picture")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):  # the second changes nothing
        tracking.log_evaluation(
            uri, "tests", "key-1", "abc", 100, 5000, {"fd_1step": 3.5}, {"protocol.n": 10}, [tmp_path / "grid.png"]
        )
    parent, child = sorted(stored(tmp_path), key=lambda run: run["parent"] is not None)
    assert child["parent"] == parent["id"] and child["params"] == {"protocol.n": "10"} and child["status"] == "FINISHED"
    assert parent["status"] == "FINISHED" and parent["metrics"]["fd_1step"] == child["metrics"]["fd_1step"] == 3.5
    assert tracking.history(uri, parent["id"], "fd_1step") == [(100, 3.5)]
    assert len(list((tmp_path / "mlartifacts").rglob("samples/grid.png"))) == 2


def test_evaluation_of_an_unknown_run_or_store_is_a_sentence(tmp_path):
    with pytest.raises(tracking.TrackingError, match="key-9 is not in experiment 'tests'"):
        tracking.log_evaluation(f"sqlite:///{tmp_path}/mlflow.db", "tests", "key-9", "abc", 1, 1, {"fd": 1.0}, {})
    obstacle = _blocked(tmp_path)
    for look in (
        lambda uri: tracking.log_evaluation(uri, "tests", "key-9", "abc", 1, 1, {"fd": 1.0}, {}),
        lambda uri: tracking.runs(uri, "tests"),
    ):
        with pytest.raises(ConfigError, match=f"{obstacle} is no folder"):
            look(f"sqlite:///{obstacle}/mlflow.db")


def test_a_search_leaves_nothing_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start(tmp_path).close()
    courier.deliver(tmp_path / "tracking")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert len(tracking.runs(uri, "tests")) == 1 and tracking.runs(uri, "no such experiment") == []
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_two_processes_may_make_the_same_store(tmp_path):
    for name in ("a", "b"):
        Tracker.start(
            f"sqlite:///{tmp_path}/mlflow.db", "tests", name, name, {}, {}, tmp_path / name, courier=False
        ).log(1, {"loss": 1})
    commands = [[sys.executable, "-m", "cmdist.tracking.courier", str(tmp_path / name)] for name in ("a", "b")]
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert sorted(run["name"] for run in stored(tmp_path)) == ["a", "b"]


# --- a real server


class Server:
    """A real MLflow server that can be killed and started again on the same port and store."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
        ]
        command += [
            "--artifacts-destination",
            str(self.folder / "artifacts"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [5, 60])
def test_a_real_server_that_is_killed_and_comes_back_gets_every_point_once(tmp_path, seconds):
    step, slowest = 0, 0.0

    def log_for(duration: float) -> None:
        nonlocal step, slowest
        end = time.monotonic() + duration
        while time.monotonic() < end:
            begin = time.monotonic()
            tracker.log(step, {"loss": step, "mu": -step})
            slowest = max(slowest, time.monotonic() - begin)
            step += 1
            time.sleep(0.05)

    with Server(tmp_path) as server:
        tracker = start(tmp_path, server.uri, courier=True)
        while Journal(tmp_path / "tracking").cursor()["place"] < 5000:  # the courier needs its time to start
            log_for(0.5)
            assert step < 2000, "nothing was delivered before the kill"
        server.kill()
        delivered = Journal(tmp_path / "tracking").cursor()["place"]
        log_for(seconds)
        assert Journal(tmp_path / "tracking").cursor()["place"] == delivered
        server.start()
        log_for(3.0)
        tracker.close(patience=180)
        (run,) = tracking.runs(server.uri, "tests")
        assert run["status"] == "FINISHED" and slowest < 0.5
        for metric, sign in (("loss", 1), ("mu", -1)):
            rows = sqlite3.connect(tmp_path / "server.db").execute(
                "select step, value from metrics where key = ? order by step", (metric,)
            )
            assert rows.fetchall() == [(k, float(sign * k)) for k in range(step)]
        times = (
            sqlite3.connect(tmp_path / "server.db")
            .execute("select timestamp from metrics where key = 'loss' order by step")
            .fetchall()
        )
        assert times == sorted(times)
