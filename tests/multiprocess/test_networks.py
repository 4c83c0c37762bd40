"""DDPM++ and NCSN++ as kinds of network: planned, refused, trained, followed, sampled from."""

from pathlib import Path

import pytest
import torch

from cmdist import build, config, models
from cmdist.checkpoints import search
from cmdist.errors import ConfigError
from cmdist.nets.songunet import SongUNet
from cmdist.plan import plan
from ranks import train
from training import SMALL, vectors, write_config

KEYS = "model_channels: 8, channel_mult: [1, 2], num_blocks: 1, attention_resolutions: [8], dropout: 0.1"
(OWN,) = (line for line in SMALL.splitlines() if line.startswith("network:"))
KINDS = ("ddpmpp", "ncsnpp")


def text(kind: str) -> str:
    return SMALL.replace(OWN, f"network: {{kind: {kind}, {KEYS}}}")


def frequencies(run: Path, step: int) -> list[torch.Tensor]:
    """Those of NCSN++ in every vector of weights of a checkpoint."""
    layout = search.open_checkpoint(str(run), step).layout
    place = layout.names.index("map_noise.freqs")
    start, (width,) = layout.starts[place], layout.shapes[place]
    weights = vectors(run, step)
    return [v[start : start + width] for name, v in weights.items() if name == "master" or name.startswith("ema")]


def test_a_teacher_is_trained_and_followed_in_forward_mode(tmp_path: Path, digits: str) -> None:
    """NCSN++ in bf16, augmented, with labels left out, on two ranks; then sCM by DDPM++ from it, guided
    by scales that it is told. Frequencies stay as
    drawn.
    """
    runs = tmp_path / "runs"
    path = write_config(tmp_path, digits, text("ncsnpp"))
    common = ["train.steps=4", "train.checkpoint_every=2", "train.precision=bf16"]
    own = ["network.augment_dim=9", "network.null_label=true", "train.label_dropout=0.2", "run.name=teacher"]
    own += ["objective.augment=0.5"]
    run = train(2, tmp_path / "teacher.log", path, *common, *own)
    assert run.join() == [0, 0], run.text
    first, *others = [f for step in (2, 4) for f in frequencies(runs / "teacher", step)]
    assert first.std() > 5 and others and all(torch.equal(first, other) for other in others)
    assert not torch.equal(vectors(runs / "teacher", 2)["master"], vectors(runs / "teacher", 4)["master"])

    path = write_config(tmp_path, digits, text("ddpmpp"))
    scm = ["objective.kind=scm_distillation", f"objective.teacher={runs}/teacher", "run.name=student"]
    scm += ["objective.guidance_range=[1.0, 4.0]", "network.told_guidance=true"]
    run = train(1, tmp_path / "student.log", path, *common, *scm, "train.steps=2")
    assert run.join() == [0], run.text
    for name in ("teacher", "student"):
        denoise = build.load_denoiser(models.open_run(str(runs / name)))
        assert isinstance(denoise.net, SongUNet) and denoise.net.precision == "bf16"
        out = denoise(torch.randn(2, 1, 8, 8), torch.tensor([0.5, 20.0]), torch.tensor([1, 9]))
        assert out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_lowered_and_planned_as_adm_is(kind: str) -> None:
    made = config.parse(text(kind), ["train.precision=bf16"])
    low = build.lowered(build.network(made))
    assert low.enc["8x8_block0"].conv0.weight.dtype == torch.bfloat16 != low.map_layer0.weight.dtype  # type: ignore
    costs = plan(made, 1)
    assert costs.parameters == sum(p.numel() for p in build.on_meta(made).parameters())
    assert 2.8 < costs.flops / costs.forward_flops < 3.2
    again = plan(config.parse(text(kind), ["train.precision=bf16", "network.checkpoint_activations=true"]), 1)
    assert again.memory["activations"] < costs.memory["activations"]


def test_what_cannot_be_is_one_sentence() -> None:
    for override, sentence in (
        ("data.image_size=9", r"data.image_size \(9\) must be divisible by 2 for network.channel_mult of length 2"),
        ("network.model_channels=9", r"network.model_channels \(9\) must be even"),
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay moves every weight, .* keeps its frequencies"),
        ("network.num_res_blocks=2", "unknown key 'network.num_res_blocks'; did you mean 'num_blocks'"),
        ("objective.kind=mean_flow", "it needs network.second_time true"),
    ):
        with pytest.raises(ConfigError, match=sentence) as error:
            config.parse(text("ncsnpp"), [override])
        assert "\n" not in str(error.value)
    config.parse(text("ddpmpp"), ["optimizer.weight_decay=0.1"])
    with pytest.raises(ConfigError, match=r"attention_resolutions \[5\] do not occur"):
        build.on_meta(config.parse(text("ddpmpp"), ["network.attention_resolutions=[5]"]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_noise_level_starts_from_a_network_without_it(kind: str) -> None:
    jumps = config.parse(text(kind), ["objective.kind=mean_flow", "network.second_time=true", "init=runs/x"])
    plain = config.parse(text(kind))
    weights = build.network(plain).state_dict()
    net = build.network(jumps)
    net.load_state_dict(build.fitting(jumps, net, plain, weights))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in weights.items())
