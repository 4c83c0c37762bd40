"""Attempts: each start of a run takes a number, and only the newest may commit.

    RUN/attempts/000007         who took number 7
    RUN/attempts/000007.start   from which steps this attempt and those before it have started
    RUN/attempts/000007.saved   the first step that it has committed
    RUN/attempts/000007.beat    changes while it lives
    RUN/attempts/000007.end     it has ended

All but the beat are written once, so that a request that was delayed on its way can overwrite nothing.

A number is taken by creating its file, which exactly one can do where the store has conditional puts, and on a shared
folder. (A store that ignores conditions may let two through that start within the same moment; the one that finds the
other's name in its file at the next look ends.) Before each COMMIT an attempt looks whether a newer number is taken. An
old process that had looked just before writes in vain too: a checkpoint counts only if no later attempt has started
from an earlier step, and every attempt writes into folders of its own.
"""

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cmdist.checkpoints import documents, sealed
from cmdist.errors import CmdistError, DataError, Fenced, LookupFailed, RunInUse
from cmdist.system import sharing, storage
from cmdist.system.distributed import World
from cmdist.system.typed import Document

BEAT = 5.0  # seconds between two signs of life
SILENCE = 3 * BEAT  # after which an attempt on another machine is taken for dead; no clocks are compared

NEVER = 10**9  # the number of no attempt
KEPT = 20  # attempts whose files stay
PRUNED = 25  # attempts whose files go at one start, at most

_NUMBER = re.compile(r"\d{6}")
_FILE = re.compile(r"(\d{6})(\.(?:start|saved|beat|end))?")


@dataclass(frozen=True)
class Known:
    """What the attempts of a run have left of themselves."""

    starts: tuple[tuple[int, int], ...]  # (attempt, step that it started from), ascending in both
    own: bool  # whether the newest that has begun went on from the run's own checkpoint
    marks: int  # the first attempt that marks its saves as UNFINISHED; those before it are of older code
    saved: tuple[int, ...]  # attempts that have committed


class Attempt:
    """The right to commit in a run folder. Rank 0 holds it; the other ranks' objects know its number and do nothing."""

    def __init__(self, run_url: str, number: int, claim: bytes | None) -> None:
        self._run_url, self.number, self._claim = run_url, number, claim
        self._begun = self._saved = False
        self._over = threading.Event()
        self._newer: Fenced | None = None
        if claim is not None:
            self._thread = threading.Thread(target=self._live, name="attempt", daemon=True)
            self._thread.start()

    @classmethod
    def take(cls, run_url: str) -> "Attempt":
        """Take the next number. Raises RunInUse if the attempt before is alive."""
        mine = _here() | {"time": time.time(), "token": uuid.uuid4().hex}
        claim = sealed.seal(mine)
        while True:
            taken = numbers(run_url)
            if taken:
                _wait_for_its_end(run_url, taken[-1], mine)
            number = taken[-1] + 1 if taken else 1
            storage.create(_file(run_url, number), claim)
            if _read(_file(run_url, number), documents.CLAIM).get("token") == mine["token"]:
                return cls(run_url, number, claim)

    def begin(self, step: int, own: bool = True) -> None:
        """Note the step that this attempt starts from: what earlier attempts commit beyond it does not count from now
        on. `own`: from the run's own checkpoint, or from nothing.
        """
        if self._claim is None:
            return
        before = known(self._run_url)
        # a start below earlier ones takes their place: whatever they ruled out, it rules out
        starts = [[number, start] for number, start in before.starts if start < step]
        marks = before.marks if 0 < before.marks < NEVER else self.number
        record = {"starts": [*starts, [self.number, step]], "own": own, "marks": marks}
        record["saved"] = list(before.saved[:1])  # its file may be pruned
        sealed.write(self._file(".start"), sealed.seal(record))
        self._begun = True

    def saved(self, step: int) -> None:
        """Note, once, that this attempt has committed: then a run without checkpoints is one that has lost them."""
        if self._claim is not None and not self._saved:
            sealed.write(self._file(".saved"), sealed.seal({"step": step}))
            self._saved = True

    def prune(self) -> int:
        """Remove the files of attempts long ago, some at each start; how many attempts went."""
        if self._claim is None:
            return 0
        names = storage.names(storage.join(self._run_url, "attempts"))
        numbers = sorted({int(match[1]) for name in names if (match := _FILE.fullmatch(name))})
        gone = [number for number in numbers if number <= self.number - KEPT][:PRUNED]
        for number in gone:
            for name in names:
                # the claim last: a rest is found again
                if (match := _FILE.fullmatch(name)) and int(match[1]) == number and match[2]:
                    storage.remove(storage.join(self._run_url, "attempts", name))
            storage.remove(_file(self._run_url, number))
        return len(gone)

    def check(self) -> None:
        """Look whether this is still the newest attempt. Raises Fenced."""
        if self._claim is None:
            return
        newest = numbers(self._run_url)[-1:]
        holder = newest[0] if newest else 0
        if holder != self.number or all(
            storage.read(self._file()) != self._claim for _ in range(5)
        ):  # the way may be at fault
            who = "nobody knows who"
            if holder:
                who = f"attempt {holder}, {_who(_read(_file(self._run_url, holder), documents.CLAIM))},"
            self._newer = Fenced(
                f"{who} has taken over {self._run_url}: attempt {self.number} ends here and commits nothing more"
            )
            raise self._newer

    def raise_if_fenced(self) -> None:
        """As `check`, from what the last look found, without asking the store."""
        if self._newer is not None:
            raise self._newer

    def end(self) -> None:
        """Say that this attempt is over, so that the next one need not wait; one that never began leaves no trace."""
        self._over.set()
        if self._claim is None:
            return
        self._thread.join(BEAT)
        with contextlib.suppress(Exception):  # else the next one finds out by itself
            if self._begun:
                storage.write(self._file(".end"), b"")
            elif self._newer is None:
                storage.remove(self._file(".beat"))
                storage.remove(self._file())

    def _file(self, suffix: str = "") -> str:
        return _file(self._run_url, self.number) + suffix

    def _live(self) -> None:
        for beat in itertools.count():
            try:
                storage.write(self._file(".beat"), str(beat).encode())
                if self._over.wait(BEAT):
                    return
                self.check()
            except Fenced:
                return
            except Exception:  # a store that is down will be up again; until then the next attempt cannot see us either
                self._over.wait(BEAT)


@contextlib.contextmanager
def attempt_at(run_url: str, world: World) -> Iterator[Attempt]:
    """An attempt of all ranks at a run, until the block ends.
    Raises RunInUse on all of them if another one is alive.
    """
    attempt: Attempt | None = None
    error: CmdistError | None = None
    if world.first:
        try:
            attempt = Attempt.take(run_url)
        except (OSError, CmdistError) as caught:
            cause = str(caught) if isinstance(caught, CmdistError) else f"{type(caught).__name__}: {caught}"
            error = (
                caught
                if isinstance(caught, RunInUse)
                else LookupFailed(f"no attempt at {run_url} can be begun: {cause}")
            )
    number, kind, sentence = sharing.from_first((attempt and attempt.number, type(error), str(error)), world.control)
    if number is None:
        raise kind(sentence)
    attempt = attempt or Attempt(run_url, number, None)
    try:
        yield attempt
    finally:
        attempt.end()


def refuse_in_use(run_url: str) -> None:
    """Raise RunInUse if another attempt is alive, without taking a number."""
    taken = numbers(run_url)
    if taken:
        _wait_for_its_end(run_url, taken[-1], _here())


def _here() -> dict[str, Any]:
    """Who this process is."""
    pid = os.getpid()
    mine = {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _started(pid)}
    return mine | {"job": os.environ.get("SLURM_JOB_ID")}


def numbers(run_url: str) -> list[int]:
    """The numbers of a run's attempts, ascending."""
    return [int(name) for name in storage.names(storage.join(run_url, "attempts")) if _NUMBER.fullmatch(name)]


def starts(run_url: str) -> list[tuple[int, int]]:
    """(attempt, step that it started from), ascending in both, as the newest attempt that has begun knows them."""
    return list(known(run_url).starts)


def known(run_url: str) -> Known:
    """What the newest attempt that has begun knows, and which have committed."""
    names = storage.names(storage.join(run_url, "attempts"))
    begun = [name for name in names if name.endswith(".start")]
    start = _read(storage.join(run_url, "attempts", begun[-1]), documents.START) if begun else {}
    saved = {int(match[1]) for name in names if (match := _FILE.fullmatch(name)) and match[2] == ".saved"}
    starts = tuple((number, step) for number, step in start.get("starts", []))
    marks = start.get("marks", NEVER if begun else 0)
    return Known(starts, start.get("own", True), marks, tuple(sorted({*saved, *start.get("saved", [])})))


def _file(run_url: str, number: int) -> str:
    return storage.join(run_url, "attempts", f"{number:06d}")


def _read(url: str, document: Document) -> dict[str, Any]:
    try:
        return document.check(sealed.read(url), url)
    except (FileNotFoundError, ValueError, DataError) as error:
        if isinstance(error, CmdistError) and not isinstance(error, DataError):
            raise
        return {}  # not there yet, or damaged: nothing is known


def _wait_for_its_end(run_url: str, number: int, mine: dict[str, Any]) -> None:
    """Return when attempt `number` is over. Raises RunInUse."""
    claim, beat_url = _read(_file(run_url, number), documents.CLAIM), _file(run_url, number) + ".beat"
    if storage.exists(_file(run_url, number) + ".end"):
        return
    last = _beat(beat_url)
    in_use = RunInUse(
        f"{run_url} is in use by attempt {number}, {_who(claim)}, which is alive; stop it first, "
        "or take another run.name"
    )
    if (claim.get("host"), claim.get("boot")) == (mine["host"], mine["boot"]) and claim.get("started"):
        started = _started(claim.get("pid", 0))
        # the same process, not another with its number
        if started is not None and abs(started - claim["started"]) < 2.0:
            raise in_use
        return
    if claim.get("job") and claim["job"] == mine["job"]:  # requeued: Slurm has ended it, and a cut-off one is fenced
        return
    print(
        f"attempt {number}, {_who(claim)}, has not ended; looking for {SILENCE:g} s whether it lives",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        time.sleep(BEAT / 5)
        if storage.exists(_file(run_url, number) + ".end"):
            return
        if _beat(beat_url) != last:
            raise in_use


def _beat(url: str) -> bytes:
    try:
        return storage.read(url)
    except FileNotFoundError:
        return b""


def _who(claim: dict[str, Any]) -> str:
    job = f" of job {claim['job']}" if claim.get("job") else ""
    return f"process {claim.get('pid')} on {claim.get('host')}{job}"


def _started(pid: int) -> float | None:
    """When a process of this machine started; None if it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(psutil.boot_time())
