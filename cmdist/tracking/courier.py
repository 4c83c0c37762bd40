"""The process that delivers a journal to MLflow: `python -m cmdist.tracking.courier FOLDER` does so by hand."""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

from cmdist.system import collector
from cmdist.tracking import mlflow
from cmdist.tracking.delivery import Delivery, StoreGone
from cmdist.tracking.journal import Journal, Watch

_TURN = 600.0  # seconds for which it waits for the courier of an earlier attempt, which ends soon after its run
_GRACE = 60.0  # seconds for which a courier goes on trying after its run has ended
_RUN = 0  # stdin: the journal's folder when the run's start is in it, and its end when no more follows


def deliver(folder: Path, patience: float = 20.0) -> bool:
    """Deliver what is left in a journal; True if nothing is left.
    A courier that is still at it has the same patience.
    """
    deadline = time.monotonic() + patience
    journal = Journal(folder)
    while True:
        with journal.lock() as held:
            if held:
                return _drain(Delivery(journal), deadline)
        if not any(journal.read(journal.cursor()["place"], limit=1)):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _drain(delivery: Delivery, deadline: float) -> bool:
    """Deliver everything that is there; False if the server would not have it in time."""
    said = ""
    while True:
        try:
            if not delivery.step():
                return True
        except StoreGone as gone:
            delivery.again(gone.args[0])
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}"
            if sentence != said:
                print(f"{time.strftime('%F %T')} not delivered: {sentence}", file=sys.stderr, flush=True)
            said = sentence
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)


def _told_to_go(parent: int) -> Path | None:
    """The journal's folder, once the run says that its start is in there; None if it ended before."""
    told = b""
    while not told.endswith(b"\0"):
        while not select.select([_RUN], [], [], 0.5)[0]:
            if os.getppid() != parent:  # a child of it may have the other end of the pipe
                return None
        if not (more := os.read(_RUN, 4096)):
            return None
        told += more
    return Path(os.fsdecode(told[:-1]))


def _courier(parent: int, store: str = "") -> None:
    """Deliver a journal as long as process `parent` lives, and then what is left, for up to a minute."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the training decides when it ends, and the courier ends with it
    os.nice(10)
    with contextlib.suppress(Exception):
        mlflow.prepare(store)
    if (folder := _told_to_go(parent)) is None:
        return
    journal, ended = Journal(folder), False
    with (folder / "courier.log").open("ab") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    mlflow.prepare()  # once more: what it raised stands in the log
    with journal.lock(_TURN) as held:
        if not held:
            print(f"{time.strftime('%F %T')} another courier has had {folder} for {_TURN:.0f} s", file=sys.stderr)
            return
        delivery, watch = Delivery(journal), Watch(journal)
        while True:
            watch.look()
            gone = os.getppid() != parent  # looked at first: what was written before the end is then delivered below
            delivered = _drain(delivery, time.monotonic() + (_GRACE if gone else 0.0))
            if gone or (delivered and delivery.status in ("FINISHED", "FAILED", "KILLED")):
                break
            if ended:
                time.sleep(0.1 if delivered else 2.0)
            elif select.select([_RUN], [], [], 0.5 if delivered else 2.0)[0]:
                ended = not os.read(_RUN, 1)
        starts = [record["pid"] for record, _ in journal.read() if record["kind"] == "start"]
        if delivered and delivery.status in (None, "RUNNING") and starts[-1:] == [parent]:
            delivery.killed()


if __name__ == "__main__":
    collector.spare_the_end()
    if sys.argv[1] == "--of":
        _courier(int(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(0 if deliver(Path(sys.argv[1])) else 1)
