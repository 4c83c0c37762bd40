"""pipelines/export.py: what diffusers itself makes of an exported folder, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cmdist import build, config, models
from cmdist.core.noise import karras_sigmas
from cmdist.core.sampling import multistep, one_step
from cmdist.errors import CheckpointError, ConfigError
from cmdist.nets import diffusers as format
from cmdist.nets import released, torchvision_ops
from cmdist.nets.unet import UNet
from ranks import pipeline
from runs import call, make_data, make_run

torchvision_ops.declare_missing()
import diffusers

export = pipeline("export")

# As narrow as 32 groups in every normalization allow.
WIDE = {"model_channels": 128, "num_res_blocks": 1, "head_channels": 64}
NETWORKS = {
    "imagenet64": (10, WIDE | {"channel_mult": [1, 2], "attention_resolutions": [8]}),
    "lsun256": (
        0,
        WIDE
        | {"channel_mult": [1, 1, 2], "attention_resolutions": [4], "scale_shift_norm": False, "num_res_blocks": 2},
    ),
    "attention only in the middle": (0, WIDE | {"channel_mult": [1], "resblock_updown": False, "head_channels": 32}),
}
CURRICULA = {
    "imagenet64": ({"kind": "constant", "n_timesteps": 40}, 40, 22),
    "lsun256": ({"kind": "paper", "s1": 150}, 151, 67),
}


def settings(name: str, **more: object) -> str:
    classes, network = NETWORKS[name]
    made = {
        "objective": "consistency_training",
        "run": {"name": name.split()[0]},
        "data": {"url": "x", "image_size": 16, "channels": 3, "classes": classes},
        "network": network,
        "curriculum": CURRICULA.get(name, CURRICULA["imagenet64"])[0],
        "optimizer": {"lr": 1e-4},
        "train": {"steps": 100, "global_batch": 8, "micro_batch": 8, "precision": "fp32"},
    }
    return json.dumps(made | more)


def filled(net: UNet) -> UNet:
    """Every number of every layer drawn, so that no path is silent and no two layers could be exchanged."""
    torch.manual_seed(3)
    for p in net.parameters():
        nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_diffusers_makes_the_same_images(tmp_path: Path, name: str) -> None:
    """From a file of the released layout to diffusers' own pipeline: one and two steps from the same noise."""
    _, n_timesteps, middle = CURRICULA.get(name, CURRICULA["imagenet64"])
    (tmp_path / "c.yaml").write_text(settings(name))
    c = config.load(tmp_path / "c.yaml")
    net = filled(build.network(c))
    torch.save(net.state_dict(), tmp_path / "cd_small.pt")
    out = tmp_path / "exported"
    call(export.main, tmp_path / "c.yaml", "--weights", tmp_path / "cd_small.pt", "--out", out)
    pipe = diffusers.ConsistencyModelPipeline.from_pretrained(str(out))
    pipe.set_progress_bar_config(disable=True)
    assert sum(p.numel() for p in pipe.unet.parameters()) == sum(p.numel() for p in net.parameters())
    assert pipe.scheduler.config.num_train_timesteps == n_timesteps

    noises = torch.randn(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 4, 9]) if c.data.classes else None
    denoise = build.model(c, net)

    def theirs(**arguments: object) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        made = pipe(
            batch_size=3, class_labels=labels, latents=noises[0], generator=generator, output_type="np", **arguments
        )
        return torch.from_numpy(made.images).permute(0, 3, 1, 2) * 2 - 1

    ours = one_step(denoise, noises[0], 80.0, labels)
    assert ours.std() > 0.1 and (ours.abs() < 1).float().mean() > 0.5  # neither grey nor all black and white
    torch.testing.assert_close(theirs(num_inference_steps=1), ours, rtol=0, atol=2e-5)
    again = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    times = karras_sigmas(n_timesteps, dtype=torch.float64)[[0, middle]]
    ours = multistep(denoise, torch.stack([noises[0], again]), times, 0.002, labels)
    torch.testing.assert_close(theirs(num_inference_steps=None, timesteps=[middle, 0]), ours, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("channel_mult", "arguments"),
    [
        ((1, 2, 3, 4), {"image_size": 64, "model_channels": 192, "num_res_blocks": 3, "num_classes": 1000}),
        (
            (1, 1, 2, 2, 4, 4),
            {"image_size": 256, "model_channels": 256, "num_res_blocks": 2, "scale_shift_norm": False},
        ),
    ],
)
def test_every_tensor_of_the_papers_networks_finds_its_place(channel_mult: tuple[int, ...], arguments: dict) -> None:
    """At full size, on the meta device: diffusers' own UNet2DModel has exactly these names and shapes."""
    with torch.device("meta"):
        net = UNet(attention_resolutions=(32, 16, 8), channel_mult=channel_mult, **arguments)
        described = format.unet_config(net, channel_mult, arguments["num_res_blocks"])
        theirs = diffusers.UNet2DModel.from_config(described)
    made = format.weights(net, net.state_dict(), arguments["num_res_blocks"])
    assert {n: tuple(v.shape) for n, v in made.items()} == {n: tuple(v.shape) for n, v in theirs.state_dict().items()}


def test_a_runs_average_becomes_plain_safetensors_that_are_read_back(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ct", make_data(tmp_path / "data"))
    call(export.main, run, "--format", "safetensors", "--ema", "0.5", "--out", tmp_path / "out")
    wanted = models.ema_weights(models.open_run(str(run)), 0.5)
    found = released.read(str(tmp_path / "out" / "model.safetensors"), 16)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    again = build.open_model(str(tmp_path / "out" / "config.yaml"), file=str(tmp_path / "out" / "model.safetensors"))
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 80.0]), torch.tensor([3, 4])
    assert torch.equal(
        again.denoiser()(x, sigma, labels), build.load_denoiser(models.open_run(str(run)), 0.5)(x, sigma, labels)
    )


def test_a_guided_diffusion_file_is_turned_into_one_that_init_takes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(settings("imagenet64"))
    c = config.load(tmp_path / "c.yaml")
    net = filled(build.network(c))
    legacy = net.state_dict()
    for name in [n for n in legacy if ".qkv." in n]:  # (3, heads, 64) to (heads, 3, 64), then as Conv1d
        legacy[name] = torch.cat(
            [legacy[name].view(3, -1, 64, *legacy[name].shape[1:])[:, h] for h in range(legacy[name].shape[0] // 192)]
        )
        legacy[name] = legacy[name].flatten(0, 1)
    theirs = {n: v.squeeze(-1) if n.endswith((".qkv.weight", ".proj_out.weight")) else v for n, v in legacy.items()}
    torch.save(theirs, tmp_path / "model.pt")
    arguments = [
        tmp_path / "c.yaml",
        "--weights",
        tmp_path / "model.pt",
        "--format",
        "safetensors",
        "--qkv-order",
        "legacy",
    ]
    call(export.main, *arguments, "--out", tmp_path / "out")
    other = build.network(c)
    build.initialise(c.model_copy(update={"init": str(tmp_path / "out" / "model.safetensors")}), other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def test_what_cannot_be_exported_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    narrow, edm = make_run(tmp_path, "ct", data), make_run(tmp_path, "edm", data, objective="denoising")
    wide = dict(NETWORKS["imagenet64"][1])
    plain, first = (
        make_run(tmp_path, "plain", data, network=wide | {"resblock_updown": False, "attention_resolutions": []}),
        tmp_path,
    )
    first = make_run(tmp_path, "first", data, network=wide | {"channel_mult": [2, 2], "attention_resolutions": []})
    angle = make_run(tmp_path, "angle", data, noise={"c_noise": "angle"})
    slow = make_run(tmp_path, "slow", data, network=wide | {"time_factor": 1.0})
    (tmp_path / "c.yaml").write_text(settings("lsun256"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "cd_a.pt")
    cases = [
        ([narrow], ConfigError, r"diffusers has 32 groups in every normalization, and this network has also \[2, 4\]"),
        ([edm], ConfigError, "is a denoiser; a ConsistencyModelPipeline needs a consistency model"),
        ([plain], ConfigError, "needs network.resblock_updown true"),
        ([first], ConfigError, "network.channel_mult must begin with 1, not 2"),
        (
            [angle],
            ConfigError,
            "scalings of consistency distillation and training only, with noise.c_noise log",
        ),
        ([slow], ConfigError, "as the released models do: network.time_factor 1000"),
        ([narrow, "--ema", "0.7"], CheckpointError, "has no average with decay 0.7"),
        ([tmp_path / "c.yaml", "--weights", tmp_path / "cd_a.pt"], CheckpointError, "cd_a.pt has another architecture"),
        (
            [tmp_path / "c.yaml", "--weights", tmp_path / "cd_a.pt", "--format", "safetensors"],
            CheckpointError,
            "another architecture",
        ),
        ([tmp_path / "c.yaml", "--weights", tmp_path / "cd_a.pt", "--ema", "0.9"], ConfigError, "--ema is for runs"),
        ([tmp_path / "nowhere"], CheckpointError, "is not a run folder"),
    ]
    for arguments, error, says in cases:
        with pytest.raises(error, match=says) as raised:
            call(export.main, *arguments, "--out", tmp_path / "out")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="data is there already; give a folder where nothing is yet"):
        call(export.main, narrow, "--out", data)
