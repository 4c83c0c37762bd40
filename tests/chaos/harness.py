"""Random kills: a run on a real S3 server is killed again and again at chosen kinds of moments, and each resume is
checked.

What is true is read from the server's disk, not through cmdist: the newest COMMIT there is the step that the next
attempt must start from, and its checksums must be those of a run that nobody killed.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ranks import Ranks, run_pipeline
from servers import Rclone, environment
from training import OBJECTIVES, SMALL, write_config

EVERY = 3  # steps between checkpoints
MOMENTS = ("start", "fetch", "step", "copy", "upload", "between", "before COMMIT", "after COMMIT", "thinning", "any")
COMMON = [
    *OBJECTIVES["ct"],
    f"train.checkpoint_every={EVERY}",
    "train.self_check=false",
    "train.log_every=1000",
    "network.dropout=0.1",
]
COMMON += ["train.micro_batch=8"]


def die(after: float = 0.0) -> None:
    """SIGKILL this process, in `after` seconds, whatever it is doing then."""
    threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGKILL)).start() if after else os.kill(
        os.getpid(), signal.SIGKILL
    )


def mortal(moment: str, victim: int, nth: int, delay: float, arguments: list[str]) -> None:
    """pipelines/train.py, in which rank `victim` dies when it comes to the `nth` such moment."""
    from cmdist.checkpoints import checkpoint, retention
    from cmdist.system import storage
    from cmdist.train import snapshots
    from cmdist.train.trainer import Trainer

    count = [0]

    def now() -> bool:
        count[0] += 1
        return count[0] == nth and int(os.environ["RANK"]) == victim

    def patch(owner: Any, name: str, before: Any = None, after: Any = None, when: Any = lambda *a, **k: True) -> None:
        plain = getattr(owner, name)

        def patched(*arguments: Any, **keywords: Any) -> Any:
            hit = when(*arguments, **keywords) and now()
            if hit and before:
                before()
            result = plain(*arguments, **keywords)
            if hit and after:
                after()
            return result

        setattr(owner, name, patched)

    def data_file(url: str, *rest: Any) -> bool:
        return url.endswith(".safetensors")

    if moment == "fetch":
        patch(checkpoint.Checkpoint, "fetch", before=lambda: die(delay / 20))
    elif moment == "step":
        patch(Trainer, "_losses", before=lambda: die(delay / 50))
    elif moment == "copy":
        patch(snapshots, "copy_slice", after=die)
    elif moment == "upload":
        patch(storage, "write", before=lambda: die(delay / 50), when=data_file)
    elif moment == "between":
        patch(storage, "write", after=die, when=data_file)
    elif moment == "before COMMIT":
        patch(storage, "write", before=die, when=lambda url, *rest: url.endswith("COMMIT"))
    elif moment == "after COMMIT":
        patch(storage, "write", after=die, when=lambda url, *rest: url.endswith("COMMIT"))
    elif moment == "thinning":
        patch(retention.storage, "remove", after=die)
    run_pipeline("train", arguments)


def newest(run: Path) -> tuple[int, dict[str, Any]]:
    """(step, checksums of the files with numbers) of the newest COMMIT on the server's disk; (0, {}) if there is
    none.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(run.glob("checkpoints/step-*/COMMIT")):
        commit = json.loads(path.read_text())
        found[commit["step"]] = {name: file["xxh3"] for name, file in commit["files"].items() if name != "state.json"}
    return (max(found), found[max(found)]) if found else (0, {})


class Chaos:
    """A server with a data set, the run that nobody kills, and those that are killed."""

    def __init__(self, folder: Path, digits: str, ranks: int, steps: int) -> None:
        self.folder, self.ranks, self.steps = folder, ranks, steps
        self.server = Rclone(folder / "s3")
        os.environ.update(environment(self.server.port))
        self.config = write_config(folder, digits, SMALL.replace("keep_checkpoints: 0", "keep_checkpoints: 2"))
        self.common = [*COMMON, "run.root=s3://bucket/runs", f"train.steps={steps}"]
        self.kills: Counter[str] = Counter()
        self.names = 0
        assert (
            Ranks(ranks, folder / "0.log", print).join() == [0] * ranks
        )  # the server of the forks is there from now on
        begin = time.monotonic()
        straight = self.attempt("straight", "train.keep_checkpoints=0", kill=None)
        while "ranks   " not in straight.text:
            assert straight.processes[0].exitcode is None, straight.text
            time.sleep(0.01)
        self.startup = time.monotonic() - begin
        assert straight.join(300) == [0] * ranks, straight.text
        self.length = time.monotonic() - begin - self.startup
        commits = (self.server.folder / "bucket/runs/straight").glob("checkpoints/step-*/COMMIT")
        read = [json.loads(path.read_text()) for path in commits]
        self.truth = {c["step"]: {n: f["xxh3"] for n, f in c["files"].items() if n != "state.json"} for c in read}
        assert sorted(self.truth) == [*range(EVERY, steps, EVERY), steps]

    def attempt(self, name: str, *more: str, kill: tuple[str, int, int, float] | None) -> Ranks:
        self.names += 1
        arguments = [self.config, *self.common, f"run.name={name}", *more]
        return Ranks(self.ranks, self.folder / f"{self.names}.log", mortal, *(kill or ("never", 0, 0, 0.0)), arguments)

    def run(self, name: str, kills: int, seed: int, store_too: float) -> int:
        """Kill a new run up to `kills` times, and let it finish; how many times it was killed."""
        place = self.server.folder / "bucket/runs" / name
        done = 0
        while True:
            draw = random.Random(seed * 1000 + done)
            last = done == kills
            moment = MOMENTS[(seed + done) % len(MOMENTS)] if not last else "never"
            store = not last and draw.random() < store_too
            step, files = newest(place)
            assert not files or files == self.truth[step], (
                f"step {step} of {name} is not that of the run that nobody killed"
            )
            nth = {
                "step": draw.randint(1, 40),
                "upload": draw.randint(1, 6),
                "between": draw.randint(1, 6),
                "copy": draw.randint(1, 9),
            }
            kill = (moment, draw.randrange(self.ranks), nth.get(moment, draw.randint(1, 2)), draw.random())
            if moment == "fetch":  # at the very start there is nothing to fetch
                moment = "fetch" if step else "step"
                kill = (moment, kill[1], 1, kill[3])
            attempt = self.attempt(name, kill=None if last else kill)
            died = self.wait(attempt, step, moment, draw, store)
            if store:
                self.server.kill()
                self.server.start()
            self.judge(attempt, step, name)
            if not died:
                assert [p.exitcode for p in attempt.processes] == [0] * self.ranks, attempt.text
                assert newest(place) == (self.steps, self.truth[self.steps]), (
                    f"{name} ends elsewhere than the run that nobody killed"
                )
                return done
            done += 1
            self.kills[moment + (" + store" if store else "")] += 1

    def wait(self, attempt: Ranks, step: int, moment: str, draw: random.Random, store: bool) -> bool:
        """Until it has ended by itself or was killed, all ranks; whether it was killed."""
        from_outside = moment in ("start", "any")
        deadline = time.monotonic() + 240
        strike = time.monotonic() + draw.uniform(0.0, 1.2 * self.startup) if moment == "start" else None
        while any(p.exitcode is None for p in attempt.processes):
            assert time.monotonic() < deadline, attempt.text
            if from_outside and strike is None and "ranks   " in attempt.text:
                strike = time.monotonic() + draw.uniform(0.0, min(3.0, self.length / 2))
            if strike is not None and time.monotonic() > strike:
                if store:
                    self.server.process.kill()
                    time.sleep(draw.uniform(0.0, 0.5))
                break
            if any(p.exitcode == -signal.SIGKILL for p in attempt.processes):
                break
            time.sleep(0.005)
        died = any(p.exitcode != 0 for p in attempt.processes)
        for process in attempt.processes:
            process.kill()
            process.join()
        return died

    @staticmethod
    def judge(attempt: Ranks, step: int, name: str) -> None:
        text = attempt.text
        assert "warning" not in text or "store" in text, text
        if "\nstep   " in text:
            assert f"step         {step:,} of" in text, (
                f"{name} did not start from step {step}, the newest committed one:\n{text}"
            )
        elif "is finished" in text:
            assert f"step {step} of" in text

    def close(self) -> None:
        self.server.kill()
