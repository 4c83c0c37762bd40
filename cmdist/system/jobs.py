"""Commands that run side by side, some after others, each in its own log file; shares of the jobs of an array."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmdist.errors import CmdistError, ConfigError

PERIOD = 0.2  # seconds between two looks at who has ended
GRACE = 120.0  # seconds for a command that is told to end


@dataclass(frozen=True)
class Job:
    """A name, the jobs before it, and what it does, with the place it runs in (0 ... width - 1)."""

    name: str
    needs: Sequence[str]
    work: Callable[["Place"], None]


class Stopped(CmdistError):
    """Somebody has asked for the end."""


class Place:
    """One of the places that jobs run in; its commands end when `stop` is set."""

    def __init__(self, number: int, stop: threading.Event) -> None:
        self.number = number
        self._stop = stop

    def run(self, command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path) -> int:
        """A command's exit code, its output at the end of `log`. Raises Stopped."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            while process.poll() is None:
                if self._stop.wait(PERIOD):
                    raise Stopped(f"stopped; {log} is what it said")
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        return process.returncode

    def wait(self, seconds: float) -> None:
        """Do nothing for so long. Raises Stopped."""
        if self._stop.wait(seconds):
            raise Stopped("stopped")


def run(jobs: Sequence[Job], width: int, tell: Callable[[str, BaseException | None], None]) -> list[str]:
    """Run all jobs, `width` at a time, each after those that it needs; `tell` hears of each end, and what was wrong.
    Names of those that failed, or could not begin as one that they need had failed. Ends all at an exception here.
    """
    stop, free, lock = threading.Event(), list(range(width)), threading.Lock()
    waiting, done, failed = list(jobs), set[str](), list[str]()
    threads: list[threading.Thread] = []
    ended: list[tuple[Job, int, BaseException | None]] = []

    def work(job: Job, number: int) -> None:
        error: BaseException | None = None
        try:
            job.work(Place(number, stop))
        except BaseException as caught:  # told below, in the thread that asked for it
            error = caught
        with lock:
            ended.append((job, number, error))

    try:
        while waiting or len(free) < width:
            for job in [each for each in waiting if any(name in failed for name in each.needs)]:
                waiting.remove(job)
                failed.append(job.name)
            for job in [each for each in waiting if done.issuperset(each.needs)][: len(free)]:
                waiting.remove(job)
                threads.append(threading.Thread(target=work, args=(job, free.pop(0)), daemon=True))
                threads[-1].start()
            with lock:
                news, ended[:] = list(ended), []
            for job, number, error in news:
                free.append(number)
                free.sort()
                (failed.append if error else done.add)(job.name)
                tell(job.name, error)
            if not news:
                time.sleep(PERIOD)
    finally:
        stop.set()
        for thread in threads:
            thread.join(GRACE + 10)
    return failed


def places() -> int:
    """GPUs, or the CPU cores that this process may use."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def part_of(given: str | None, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(K, N) of --part K/N, or of the Slurm array that this is a task of; None: everything."""
    if given is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", given)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part {given}: K/N with K from 1 to N is needed, e.g. --part 3/8")
        return int(match[1]), int(match[2])
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    if names[0] not in environment:
        return None
    texts = [environment.get(name, environment[names[0]] if name != names[1] else "1") for name in names]
    if strange := [f"{name}={text}" for name, text in zip(names, texts, strict=True) if not text.isdigit()]:
        raise ConfigError(f"{strange[0]}: a number is needed; give --part, or unset it outside of a Slurm array")
    task, count, first, last = map(int, texts)
    if last - first + 1 != count:
        raise ConfigError(
            f"the Slurm array {first} to {last} has {count} tasks, so some parts would be missing: use one without "
            f"gaps, e.g. 1-{count}"
        )
    return task - first + 1, count
