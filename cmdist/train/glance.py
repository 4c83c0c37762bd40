"""Starts a glance at a checkpoint that was just committed:
a process of lowest priority, of which training takes no further notice.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cmdist.errors import ConfigError
from cmdist.system import launchers
from cmdist.tracking.machine import step_aside


class Glances:
    """Runs `command --checkpoint STEP` at the first commit at or past each multiple of `every` steps,
    beginning after step `start`.

    One at a time; while one runs the newest one due waits. `device` is "cpu" or the number of a GPU among those that
    this process sees (ConfigError if there are fewer). The process is in no group of the job: signals to the ranks do
    not reach it, and it ends by itself, also after the run (Slurm ends it with the job's step). Its output goes to
    `log`.
    """

    def __init__(self, command: Sequence[str], every: int, device: str, log: Path, start: int) -> None:
        self._command, self._every, self._log = command, every, log
        self._seen = start
        self._due: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # a glance is no rank, and joins no group
        self._environment = launchers.without_ranks(os.environ) | {
            "CUDA_VISIBLE_DEVICES": _visible(device),
            "OMP_NUM_THREADS": "1",
        }

    def after(self, committed: int | None) -> None:
        """Told at every step which commit is the last;
        costs nothing unless a glance is due, and never waits or raises.
        """
        if committed is not None and committed > self._seen:
            if committed // self._every > self._seen // self._every:
                self._due = committed
            self._seen = committed
        if self._due is not None and (self._process is None or self._process.poll() is not None):
            self._start()

    def close(self) -> None:
        """Start the one that waits, if any: it queues behind the one that runs."""
        if self._due is not None:
            self._start()

    def _start(self) -> None:
        step, self._due = self._due, None
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    ["nice", "-n", "19", *self._command, "--checkpoint", str(step)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
            step_aside(self._process.pid, 19)
        except OSError as error:
            print(f"warning: no glance at step {step}: {error}", file=sys.stderr)


def _visible(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES says for one of the GPUs that are visible now."""
    if device == "cpu":
        return ""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        return device
    names = [name for name in seen.split(",") if name]
    if int(device) >= len(names):
        raise ConfigError(
            f"train.glance_device {device}: this process sees {len(names)} GPUs ({seen or 'none'}), counted "
            "from 0; or take cpu"
        )
    return names[int(device)]
