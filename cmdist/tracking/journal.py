"""What a run says of itself, on the local disk until the tracking server has it: append-only JSON lines and a cursor.

Several processes append whole lines (the Tracker of the training, the courier for the machine, a glance), one delivers
(the courier, tracking.py); all may be killed at any moment. A line that a kill cut short is skipped; a line that was
delivered just before a kill is delivered again, and the receiver must not mind.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cmdist.errors import DataError
from cmdist.system import locks
from cmdist.tracking import documents
from cmdist.tracking.machine import Machine

Record = dict[str, Any]

NAME = re.compile(r"[A-Za-z0-9_.\-/ ]+")  # what MLflow allows in the name of a metric
SYSTEM_EVERY = 10.0  # seconds between two looks at the machine
LONGEST = 6000  # characters of a parameter, MLflow's limit


class Journal:
    """The files `points.jsonl`, `cursor.json` and `lock` in a folder, which is made if needed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._points = folder / "points.jsonl"
        self._cursor = folder / "cursor.json"
        self._handle: int | None = None

    def append(self, record: Record) -> None:
        """Add a line; it outlives this process at once, and a power cut once `sync` was called (by the courier)."""
        if self._handle is None:
            self._handle = os.open(self._points, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            if self._torn():
                os.write(self._handle, b"\n")
        os.write(self._handle, json.dumps(record).encode() + b"\n")

    def _torn(self) -> bool:
        with self._points.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
            return size > 0 and file.read(1) != b"\n"

    def sync(self) -> None:
        """Force the lines to the disk."""
        with self._points.open("rb") as file:
            os.fsync(file.fileno())

    def read(self, start: int = 0, limit: int | None = None) -> Iterator[tuple[Record, int]]:
        """Yield up to `limit` whole lines from byte `start` on, each with the place where the next one begins."""
        if not self._points.exists():
            return
        with self._points.open("rb") as file:
            place = file.seek(start)
            count = 0
            for line in file:
                if not line.endswith(b"\n") or count == limit:
                    return
                place += len(line)
                record = documents.line(line)
                if record is None:  # cut short by a kill
                    continue
                count += 1
                yield record, place

    def close(self) -> None:
        """Close the file that `append` opened."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def cursor(self) -> Record:
        """What `set_cursor` stored last; {"place": 0} at first, and if what is there is damaged."""
        try:
            cursor = documents.CURSOR.read(self._cursor.read_bytes(), str(self._cursor))
        except (FileNotFoundError, DataError):
            return {"place": 0}
        lines = self._points.stat().st_size if self._points.exists() else 0
        return cursor if cursor["place"] <= lines else {"place": 0}

    def set_cursor(self, cursor: Record) -> None:
        """Store how far the lines are delivered, whole or not at all."""
        temporary = self._cursor.with_suffix(".new")
        with temporary.open("w") as file:
            file.write(json.dumps(cursor))
            file.flush()
            os.fsync(file.fileno())  # else a power cut leaves an empty file under the name
        os.replace(temporary, self._cursor)

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[bool]:
        """Hold the right to deliver; gives False if another process keeps it for so many seconds.
        A killed process loses it.
        """
        deadline = time.monotonic() + patience
        with (self.folder / "lock").open("a") as file:
            while not (held := locks.tried(file.fileno())) and time.monotonic() < deadline:
                time.sleep(locks.PAUSE)
            yield held


def set_aside(folder: Path, name: str) -> None:
    """Rename the lines and the cursor of a journal, which another run wrote, to `NAME.jsonl` and `NAME.json`."""
    for old, new in (("points.jsonl", f"{name}.jsonl"), ("cursor.json", f"{name}.json")):
        if (folder / old).exists():
            os.replace(folder / old, folder / new)


class Courier:
    """The process that delivers a journal (courier.py). It imports MLflow, which takes seconds, and then waits for
    `go`: it may be started before anything is known of a run. `store`: the scheme of the store's URI, as far as that
    is known; `folder`: where it writes courier.log, which else begins when it is told to go.
    """

    def __init__(self, store: str = "", folder: Path | None = None) -> None:
        self._told = False
        package = str(Path(__file__).parents[2])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH")) if p)
        }
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with open(os.devnull if folder is None else folder / "courier.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cmdist.tracking.courier", "--of", str(os.getpid()), store],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # signals to the job's process group are for the training
            )

    def go(self, folder: Path) -> None:
        """The journal in `folder` says what run this is."""
        assert self.process.stdin is not None
        self._told = True
        with suppress(BrokenPipeError):  # it died; Tracker looks after that
            self.process.stdin.write(os.fsencode(folder.absolute()) + b"\0")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """End it unless it has been told to go."""
        if not self._told:
            self.process.kill()
            self.process.wait()

    def wait(self, patience: float) -> None:
        """Let it deliver the rest at once. Raises subprocess.TimeoutExpired if that takes longer."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(patience)

    @property
    def lives(self) -> bool:
        """Whether the process is still there."""
        return self.process.poll() is None


class Tracker:
    """What rank 0 tells about a run; no call waits for the server."""

    def __init__(self, journal: Journal, courier: Courier | bool) -> None:
        self._journal = journal
        self._courier_wanted = bool(courier)
        self._courier = courier if isinstance(courier, Courier) else None
        self._courier_started = 0.0

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        name: str,
        key: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        spool: Path,
        courier: Courier | bool = True,
        attempt: int = 1,
        begin: int = 0,
    ) -> "Tracker":
        """Open or go on with the run `key`; `spool` is the folder of its journal, `attempt` counts the starts of the
        run on any node, and `begin` is the step that this one starts from. `courier`: one that waits already, or
        whether to have one.

        Without a courier (no network) points stay in the journal until `courier.deliver`.
        Steps beyond `begin` that an earlier attempt had logged are logged again: whoever delivers them knows whether
        they are a repetition or another branch.
        """
        journal = Journal(spool)
        journal.append(
            {
                "kind": "start",
                "time": now(),
                "pid": os.getpid(),
                "uri": uri,
                "experiment": experiment,
                "name": name,
                "key": key,
                "attempt": attempt,
                "begin": begin,
                "params": {k: str(v)[:LONGEST] for k, v in params.items()},
                "tags": dict(tags),
            }
        )
        tracker = cls(journal, courier)
        if isinstance(courier, Courier):
            courier.go(spool)
        tracker._watch()
        return tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the values of metrics at a step."""
        values = {k: float(v) for k, v in metrics.items()}
        assert all(NAME.fullmatch(k) for k in values), f"MLflow refuses one of the names {sorted(values)}"
        self._append({"kind": "metrics", "time": now(), "step": step, "values": values})
        self._watch()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Note a file that goes to `folder` among the run's artifacts; it must stay where it is."""
        self._append({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def close(self, status: str = "FINISHED", patience: float = 10.0) -> None:
        """Note the end (FINISHED, FAILED or KILLED) and wait up to `patience` seconds until everything is delivered."""
        assert status in ("FINISHED", "FAILED", "KILLED")
        self._append({"kind": "end", "time": now(), "status": status})
        self._journal.close()
        if self._courier is not None:
            try:
                self._courier.wait(patience)
            except subprocess.TimeoutExpired:
                print(
                    f"tracking: the server has not taken everything yet; the rest waits in {self._journal.folder}",
                    file=sys.stderr,
                )

    def _append(self, record: Record) -> None:
        try:
            self._journal.append(record)
        except OSError as error:  # a full disk: the checkpoint will say so loudly, a point must not
            print(f"tracking: a point is lost, {self._journal.folder} cannot be written: {error}", file=sys.stderr)

    def _watch(self) -> None:
        """Have a courier running; one that died is replaced, not more than once a minute."""
        dead = self._courier is None or not self._courier.lives
        if not self._courier_wanted or not dead or time.monotonic() < self._courier_started:
            return
        self._courier_started = time.monotonic() + 60.0
        self._courier = Courier(folder=self._journal.folder)
        self._courier.go(self._journal.folder)


class Watch:
    """The node's state, every so often into the journal; its step is the seconds since the journal began."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._machine, self._next = journal, Machine(), time.monotonic() + SYSTEM_EVERY
        self._begin = next((record["time"] for record, _ in journal.read(limit=1)), now())

    def look(self) -> None:
        """Note it if that is due."""
        if time.monotonic() >= self._next:
            self._next, when = time.monotonic() + SYSTEM_EVERY, now()
            values = self._machine.look()
            self._journal.append(
                {"kind": "metrics", "time": when, "step": (when - self._begin) // 1000, "values": values}
            )


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
