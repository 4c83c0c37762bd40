"""The self-check tells a wrong gradient from the rounding of a GPU, which is planted here, and leaves no trace."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ranks import Ranks
from training import SMALL, files, write_config

NET = ["network.channel_mult=[1,2]", "network.attention_resolutions=[4]", "network.model_channels=16"]
ULP = 2.0**-8  # relative distance of neighbours in bf16
BF16 = ["train.precision=bf16"]
CD = [
    "objective.kind=consistency_distillation",
    "objective.curriculum.n_timesteps=8",
    "objective.curriculum.mu=0.5",
    "objective.distance.kind=l2",
]


class _Noise(torch.autograd.Function):
    """The identity, whose gradient comes back with rounding errors of bf16, other ones each time."""

    generator = torch.Generator().manual_seed(0)
    size = 0.0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(gradient.shape, generator=_Noise.generator)
        return gradient * (1.0 + _Noise.size * noise)


def scenarios(config_path: str, out: str) -> None:
    """Runs in one process group, fresh and resumed, with noise and faults; what the self-check said to each."""
    from cmdist import build, config
    from cmdist.errors import CmdistError
    from cmdist.system import distributed
    from cmdist.train import running
    from cmdist.train.engine import Engine
    from cmdist.train.selfcheck import Checked
    from cmdist.train.trainer import Trainer

    world, said = distributed.start(), {}
    network, backward, check = build.network, Engine.backward, Trainer.self_check

    def noisy_network(c: Any) -> Any:
        net = network(c)
        for part in net.modules():
            if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                part.register_forward_hook(lambda _, __, y: _Noise.apply(y) if y.requires_grad else y)
        return net

    def state(trainer: Trainer) -> list[bytes]:
        engine = trainer.engine
        kinds = [engine.slice(kind).numpy().tobytes() for kind in ("master", "exp_avg", "exp_avg_sq")]
        weights = [p.detach().numpy().tobytes() for p in engine.module.parameters()]
        more = repr((engine.optimizer_step, engine.loss_scale)).encode()
        return [*kinds, *weights, more, torch.get_rng_state().numpy().tobytes()]

    def watched(trainer: Trainer, **options: Any) -> Checked:
        before = state(trainer)
        checked = check(trainer, **options)
        assert state(trainer) == before
        said[name] = [checked.difference, checked.spread]
        return checked

    def run(label: str, *overrides: str, noise: float = 0.0) -> None:
        nonlocal name
        name, _Noise.size = label, noise
        made = config.load(config_path, [*NET, *overrides])
        try:
            running.train(made, world, f"{made.run.root}/{made.run.name}", "auto", Path())
        except CmdistError as error:
            said[name] = str(error)

    name, build.network, Trainer.self_check = "", noisy_network, watched  # type: ignore[method-assign]
    noisy = {"noise": 2 * ULP}
    for steps in (2, 4):
        run(f"checked {steps}", "run.name=checked", f"train.steps={steps}", "train.precision=fp16")
        run(
            *(f"unchecked {steps}", "run.name=unchecked", f"train.steps={steps}", "train.precision=fp16"),
            "train.self_check=false",
        )
        run(f"noisy {steps}", "run.name=noisy", f"train.steps={steps}", *BF16, **noisy)
    teacher = f"objective.teacher={Path(config_path).parent}/runs/noisy"
    run("teacher", "run.name=cd", "train.steps=1", *BF16, *CD, teacher, "init=teacher", **noisy)
    run("clipped", "run.name=clipped", "train.steps=1", *BF16, "optimizer.clip=0.01", **noisy)
    Engine.backward = lambda self, loss: backward(self, loss * 1.01)  # type: ignore[method-assign]
    run("1.01 fresh", "run.name=fault", *BF16, **noisy)
    run("1.01 resumed", "run.name=noisy", "train.steps=6", *BF16, **noisy)
    run("1.01 teacher", "run.name=fault", *BF16, *CD, teacher, "init=teacher", **noisy)
    run("1.01 clipped", "run.name=fault", *BF16, "optimizer.clip=0.01", **noisy)
    run("1.01 exact", "run.name=fault")  # in fp32, and without noise
    # as if nobody had divided by it
    Engine.backward = lambda self, loss: backward(self, loss * self.accumulation)  # type: ignore[method-assign]
    run("no division fresh", "run.name=fault", *BF16, **noisy)

    def first_layer_doubled(engine: Engine, loss: torch.Tensor) -> None:
        hook = engine.module.input_blocks[0][0].weight.register_hook(lambda gradient: 2 * gradient)
        backward(engine, loss)
        hook.remove()

    Engine.backward = first_layer_doubled  # type: ignore[method-assign]
    run("first layer fresh", "run.name=fault")
    if world.first:
        Path(out).write_text(json.dumps(said))
    distributed.stop(world)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, digits: str) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("selfcheck")
    ranks = Ranks(
        2,
        folder / "log",
        scenarios,
        write_config(folder, digits, SMALL.replace("head_channels: 8", "head_channels: 16")),
        str(folder / "said.json"),
    )
    assert ranks.join(300) == [0, 0], ranks.text
    return folder / "runs", json.loads((folder / "said.json").read_text())


def test_it_leaves_no_trace(said: tuple[Path, dict[str, Any]]) -> None:
    """The runs with and without it have the same bytes, from random weights and after going on."""
    runs, found = said
    for steps in (2, 4):
        assert found[f"checked {steps}"][0] < 1e-3
        assert files(runs / "checked", steps) == files(runs / "unchecked", steps)


@pytest.mark.parametrize("start", ["noisy 2", "noisy 4", "teacher", "clipped"])
def test_rounding_alone_is_allowed(said: tuple[Path, dict[str, Any]], start: str) -> None:
    """bf16 passes with last-bit noise, from random weights, resumed, from a teacher: far above what fp32 may have."""
    difference, spread = said[1][start]
    assert difference > 1e-3 and spread > 1e-3


@pytest.mark.parametrize("fault", ["1.01 fresh", "1.01 resumed", "1.01 teacher", "1.01 clipped", "no division fresh"])
def test_a_wrong_factor_is_refused_in_spite_of_rounding(said: tuple[Path, dict[str, Any]], fault: str) -> None:
    sentence = said[1][fault]
    assert sentence.startswith("self-check: the gradient through DeepSpeed differs from autograd's by ")
    assert "train.precision=fp32 tells an error of the engine" in sentence and "pyproject" not in sentence


def test_without_rounding_the_version_is_named(said: tuple[Path, dict[str, Any]]) -> None:
    assert "pyproject.toml may not allow the deepspeed that is installed" in said[1]["1.01 exact"]


def test_it_sees_behind_layers_that_begin_at_zero(said: tuple[Path, dict[str, Any]]) -> None:
    """A fault of the first layer's gradient alone, where a new network's last convolutions are 0."""
    assert said[1]["first layer fresh"].startswith("self-check: the gradient through DeepSpeed differs")
