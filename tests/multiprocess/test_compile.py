"""train.compile through the engine: the losses of real steps, compiled and not."""

import json
from pathlib import Path

import pytest

from ranks import Ranks, pipeline
from training import CT, write_config

STEPS = 3


def losses(config_path: str, overrides: list[str], out: str) -> None:
    """The losses of the first steps of a run, each micro-batch by itself."""
    from cmdist import build, config, distributed

    c = config.load(config_path, overrides)
    world = distributed.start()
    trainer, _, _ = pipeline("train").make_trainer(c, world, build.dataset(c), None, str(Path(out).parent / c.run.name), "id")
    compiled = [trainer.engine.module, trainer.target.module]
    assert all((m._compiled_call_impl is not None) == c.train.compile for m in compiled)
    assert trainer.engine.layout.names == tuple(name for name, _ in build.network(c).named_parameters())
    found = []
    for _ in range(STEPS):
        found += trainer.train_step(trainer.curriculum(trainer.step)).tolist()
        trainer.step += 1
    trainer.close("FINISHED")
    Path(out).write_text(json.dumps(found))
    distributed.stop(world)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_steps_have_the_losses_of_plain_ones(tmp_path: Path, digits: str) -> None:
    """With a target of its own, dropout masks shared by student and target, and the engine's self-check before the first step."""
    path = write_config(tmp_path, digits)
    overrides = [*CT, "network.dropout=0.3", "optimizer.lr=0.01"]
    found = {}
    for compile in ("false", "true"):
        out = tmp_path / f"{compile}.json"
        run = Ranks(1, tmp_path / f"{compile}.log", losses, path, [*overrides, f"train.compile={compile}"], str(out))
        assert run.join(600) == [0], run.text
        found[compile] = json.loads(out.read_text())
    assert len(found["true"]) == 4 * STEPS and len(set(found["true"])) == 4 * STEPS
    assert found["true"] == pytest.approx(found["false"], rel=1e-5)
