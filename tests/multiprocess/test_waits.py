"""What the host waits for in a training step: looked for on the CPU, where a wait shows as an operation that gives a
tensor's value to Python, or as a call that waits for the device.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ranks import Ranks
from training import CD, write_config

STEPS = 4  # DeepSpeed's throughput timer waits from its third step on


def waits(config_path: str, overrides: list[str], out: str, spoil: bool) -> None:
    """Which waits the steps of a run have, and the norm of the first step's gradient by two ways."""
    import torch
    from deepspeed.accelerator import get_accelerator
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from cmdist import build, config
    from cmdist.checkpoints.attempt import attempt_at
    from cmdist.system import distributed
    from cmdist.train.assembly import make_trainer
    from cmdist.train.trainer import Trainer

    found: list[str] = []
    aten = torch.ops.aten
    values = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal)

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            masks = [each for each in tree_leaves(args[1:2]) if getattr(each, "dtype", None) == torch.bool]
            if func._overloadpacket in (aten.index, aten.index_put, aten.index_put_) and masks:
                found.append("mask")
            if func._overloadpacket in values and not any(args[0] is each for each in on_host):
                found.append("value")
            return func(*args, **(kwargs or {}))

    c = config.load(config_path, overrides)
    world = distributed.start()
    run_url = str(Path(out).parent / c.run.name)
    with attempt_at(run_url, world) as attempt:
        trainer, _, _ = make_trainer(c, world, build.dataset(c), None, run_url, "id", attempt)
        assert "target" in trainer.copies
        if spoil:
            losses = Trainer._losses

            def look(self: Trainer, *arguments: Any) -> Any:
                draw, found = losses(self, *arguments)
                loss = found.minimised
                return draw, replace(found, minimised=loss[loss > -1] if loss.mean().item() else loss)

            Trainer._losses = look  # type: ignore[method-assign]
        # torch counts the optimizer's steps in a tensor of the host
        on_host = [state["step"] for state in trainer.engine._torch_optimizer.state.values()]
        get_accelerator().synchronize = lambda *_: found.append("synchronize")
        norms = []
        for _ in range(STEPS):
            with Waits():
                trainer.train_step(trainer.objective.at(trainer.step))
            if not norms:
                squares = trainer.engine.slice("exp_avg").double().square().sum()
                torch.distributed.all_reduce(squares)
                norms = [trainer.engine.gradient_norm(), float(squares.sqrt()) / (1 - c.optimizer.betas[0])]
            trainer.step += 1
        trainer.close("FINISHED")
    if world.first:
        Path(out).write_text(json.dumps([found, norms]))
    distributed.stop(world)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_host_waits_for_no_device_in_a_step(tmp_path: Path, digits: str, stage: int) -> None:
    """Distillation in bf16 with a target of its own on two ranks; and the norm that is measured without waiting is that
    of the gradient.
    """
    path, out = write_config(tmp_path, digits), tmp_path / "waits.json"
    overrides = [*CD, "data.classes=0", "train.precision=bf16", f"train.zero_stage={stage}"]
    run = Ranks(2, tmp_path / "log", waits, path, overrides, str(out), False)
    assert run.join() == [0, 0], run.text
    found, (norm, expected) = json.loads(out.read_text())
    assert found == []
    assert norm == pytest.approx(expected, rel=1e-5) and norm > 0


def test_a_value_that_is_looked_at_in_a_step_is_found(tmp_path: Path, digits: str) -> None:
    path, out = write_config(tmp_path, digits), tmp_path / "waits.json"
    run = Ranks(1, tmp_path / "log", waits, path, [*CD, "data.classes=0"], str(out), True)
    assert run.join() == [0], run.text
    found, _ = json.loads(out.read_text())
    assert set(found) == {"value", "mask"}


def ballots(out: str) -> None:
    """What two ranks hear at each of six steps, when the second says yes at step 2 only."""
    from cmdist.system import distributed

    world = distributed.start()
    vote = distributed.Vote(world.control)
    heard = [vote(world.rank == 1 and step == 2) for step in range(6)]
    last = vote.close()
    answers = distributed.gather([heard, last, vote.close()], world.control)
    if world.first:
        Path(out).write_text(json.dumps(answers))
    distributed.stop(world)


def test_all_ranks_hear_of_a_stop_one_step_later_at_the_same_step(tmp_path: Path) -> None:
    run = Ranks(2, tmp_path / "log", ballots, str(tmp_path / "heard.json"))
    assert run.join() == [0, 0], run.text
    heard = [False, False, False, True, False, False]
    assert json.loads((tmp_path / "heard.json").read_text()) == [[heard, False, False]] * 2
