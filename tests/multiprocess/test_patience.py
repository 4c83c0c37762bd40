"""How long ranks wait for each other and for a save follows from one number, train.hang_minutes."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cmdist.checkpoints import search
from ranks import Ranks, pipeline, run_pipeline
from runs import make_data, make_run
from training import write_config


def timeouts(record: str, arguments: list[str]) -> None:
    """pipelines/train.py, writing down how long each of its process groups waits."""
    from cmdist.system import distributed
    from cmdist.train.trainer import Trainer

    fit = Trainer.fit

    def look(self: Trainer) -> bool:
        groups = dist.distributed_c10d._world.pg_map
        found = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]
        if self.world.first:
            Path(record).write_text(json.dumps(found))
        return fit(self)

    Trainer.fit = look  # type: ignore[method-assign]
    assert distributed.MARGIN == 60.0
    pipeline("train").main(arguments)


def test_every_group_waits_a_little_longer_than_the_watchdog(tmp_path: Path, digits: str) -> None:
    """Those of torch, of this package and of DeepSpeed; the saver's own patience comes on top in its group."""
    from cmdist.checkpoints.saver import LONGEST_LAST

    arguments = [write_config(tmp_path, digits), "train.hang_minutes=47", "train.steps=1"]
    ranks = Ranks(2, tmp_path / "log", timeouts, str(tmp_path / "found.json"), arguments)
    assert ranks.join() == [0, 0], ranks.text
    found = sorted(json.loads((tmp_path / "found.json").read_text()))
    derived = 47 * 60.0 + 60.0
    assert len(found) >= 4  # the first, the control group, DeepSpeed's clone, the saver's
    assert set(found[:-1]) == {derived} and found[-1] == derived + LONGEST_LAST


def slow(seconds: float, where: str, arguments: list[str]) -> None:
    """pipelines/train.py with a wait in a save (of the store) or in a step (a hang)."""
    from cmdist.checkpoints.saver import Saver
    from cmdist.train.trainer import Trainer

    cls, name = {"save": (Saver, "_commit"), "step": (Trainer, "_losses")}[where]
    real = getattr(cls, name)

    def late(self: Any, *rest: Any) -> Any:
        time.sleep(seconds)
        return real(self, *rest)

    setattr(cls, name, late)
    run_pipeline("train", arguments)


def test_the_saves_own_patience_is_no_hang(tmp_path: Path, digits: str) -> None:
    """Both a save that the next one waits for and the last save take longer than a step may."""
    arguments = [write_config(tmp_path, digits), "train.hang_minutes=0.1", "train.steps=2", "train.checkpoint_every=1"]
    run = Ranks(1, tmp_path / "log", slow, 8.0, "save", arguments)
    assert run.join() == [0], run.text
    assert search.steps(str(tmp_path / "runs" / "small")) == [1, 2]


def test_a_hang_before_the_first_step_is_noticed_too(tmp_path: Path, digits: str) -> None:
    """In the self-check, where the first collectives are."""
    run = Ranks(1, tmp_path / "log", slow, 600.0, "step", [write_config(tmp_path, digits), "train.hang_minutes=0.05"])
    assert run.join(60) == [1]
    assert "Timeout (0:00:03)!" in run.text and "self_check" in run.text


def stopped(name: str, arguments: list[str]) -> None:
    """A rank 1 that is frozen as it starts, before there is a group."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    run_pipeline(name, arguments)


def test_a_rank_that_is_frozen_before_there_is_a_group_ends_the_others(tmp_path: Path, digits: str) -> None:
    """Training; and an evaluation of what one rank has trained."""
    config = write_config(tmp_path, digits)
    run = Ranks(2, tmp_path / "log", stopped, "train", [config, "train.hang_minutes=0.1"])
    assert run.join(60, 0.0)[0] == 1
    assert (
        "error: nothing has happened for 0.1 min (train.hang_minutes)" in run.text and "Timeout (0:00:06)!" in run.text
    )
    measured = make_run(tmp_path / "measured", "cd", make_data(tmp_path / "data"))
    run = Ranks(2, tmp_path / "m.log", stopped, "evaluate", [str(measured), "--hang-minutes", "0.1"])
    assert run.join(60, 0.0)[0] == 1 and "error: nothing has happened for 0.1 min (--hang-minutes)" in run.text
