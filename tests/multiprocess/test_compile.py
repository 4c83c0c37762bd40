"""train.compile through the engine: the losses of real steps, compiled and not."""

import json
from pathlib import Path

import pytest
import torch

from ranks import Ranks
from training import CT, write_config

STEPS = 3


def losses(config_path: str, overrides: list[str], out: str) -> None:
    """The losses of the first steps of a run, each micro-batch by itself."""
    from cmdist import build, config
    from cmdist.checkpoints.attempt import attempt_at
    from cmdist.system import distributed
    from cmdist.train.assembly import make_trainer

    c = config.load(config_path, overrides)
    world = distributed.start()
    run_url = str(Path(out).parent / c.run.name)
    found: list[float] = []
    with attempt_at(run_url, world) as attempt:
        trainer, _, _ = make_trainer(c, world, build.dataset(c), None, run_url, "id", attempt)
        compiled = [trainer.engine.module, *(copy.called for copy in trainer.copies.values())]
        assert all((m._compiled_call_impl is not None) == c.train.compile for m in compiled)
        assert trainer.engine.layout.names == tuple(name for name, _ in build.network(c).named_parameters())
        # a new network is silent: its last convolutions are 0, and no dropout mask would be seen in the losses
        engine = trainer.engine
        noise = torch.randn(engine.layout.total, generator=torch.Generator().manual_seed(0))
        engine.load("master", engine.slice("master") + 0.1 * noise[engine.start : engine.stop])
        for copy in trainer.copies.values():
            copy.update(engine.module, 0.0)
        for _ in range(STEPS):
            found += trainer.train_step(trainer.objective.at(trainer.step)).tolist()
            trainer.step += 1
        trainer.close("FINISHED")
    Path(out).write_text(json.dumps(found))
    distributed.stop(world)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("objective", [CT, ["objective.kind=continuous_training"]], ids=["ct", "continuous"])
def test_compiled_steps_have_the_losses_of_plain_ones(tmp_path: Path, digits: str, objective: list[str]) -> None:
    """With a target of its own or a derivative by the network as it is written, dropout masks shared by both passes,
    and the engine's self-check before the first step.
    """
    path = write_config(tmp_path, digits)
    runs = {
        "plain": ["network.dropout=0.3", "train.compile=false"],
        "compiled": ["network.dropout=0.3", "train.compile=true"],
        "no dropout": ["network.dropout=0.0", "train.compile=false"],
    }
    found = {}
    for name, overrides in runs.items():
        out = tmp_path / f"{name}.json"
        run = Ranks(1, tmp_path / f"{name}.log", losses, path, [*objective, "optimizer.lr=0.01", *overrides], str(out))
        assert run.join(600) == [0], run.text
        found[name] = json.loads(out.read_text())
    assert len(found["plain"]) == len(set(found["plain"])) == 4 * STEPS
    assert found["plain"] != pytest.approx(found["no dropout"], rel=1e-2)  # the masks matter
    assert found["compiled"] == pytest.approx(found["plain"], rel=1e-5)
