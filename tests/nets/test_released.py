"""Files of weights: made here with the exact names of the released ones, read back through real networks."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_unet import inputs, small
from torch import Tensor

from cmdist import build, config, teachers
from cmdist.errors import CheckpointError, ConfigError
from cmdist.nets import released
from cmdist.nets.unet import Attention, UNet
from cmdist.system import storage
from ranks import pipeline
from runs import call

KEYS = Path(__file__).parent / "imagenet64_keys.txt"
ENDINGS = list(released.ENDINGS)


def write(path: Path, weights: dict[str, Tensor]) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    return str(path)


def two_heads() -> UNet:
    """16 channels in the middle, so two heads of 8: with one head every order is the same."""
    return small()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_gives_the_network_back(tmp_path: Path, ending: str) -> None:
    net, other = two_heads(), small(num_classes=10)
    for p in other.parameters():
        torch.nn.init.normal_(p)
    url = write(tmp_path / f"cd_small{ending}", net.state_dict())
    released.load(other, released.read(url, 8), url)
    assert torch.equal(other(*inputs()), net(*inputs()))


def test_old_and_half_precision_files(tmp_path: Path) -> None:
    """From before torch 1.6 files are no archives, which cannot be mapped into memory; numbers are fp32 afterwards."""
    weights = two_heads().state_dict()
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert all(torch.equal(value, weights[name]) for name, value in released.read(str(tmp_path / "old.pt"), 8).items())
    half = write(tmp_path / "half.pt", {name: value.half() for name, value in weights.items()})
    assert {value.dtype for value in released.read(half, 8).values()} == {torch.float32}


def test_the_full_layout_of_imagenet64_is_read_and_fits(tmp_path: Path) -> None:
    """The names and shapes of the released file, whole, in their order; the numbers are views of one zero, so that the
    file is small.
    """
    zero = torch.zeros(1)
    lines = [line.split(" ", 1) for line in KEYS.read_text().splitlines()]
    shapes = {
        name: tuple(json.loads(shape.replace("(", "[").replace(",)", "]").replace(")", "]"))) for name, shape in lines
    }
    url = write(tmp_path / "edm_imagenet64_ema.pt", {name: zero.expand(shape) for name, shape in shapes.items()})
    found = released.read(url, 64)
    with torch.device("meta"):
        net = UNet(
            64,
            model_channels=192,
            channel_mult=(1, 2, 3, 4),
            num_res_blocks=3,
            attention_resolutions=(32, 16, 8),
            num_classes=1000,
        )
    released.check(net, found, url)
    assert list(found) == list(net.state_dict())


def by_hand(layer: Attention, x: Tensor, qkv: Tensor, legacy: bool) -> Tensor:
    """Attention on qkv (B, 3C, places), written with loops: guided-diffusion's legacy order keeps q, k, v of a head
    together.
    """
    b, c, height, width = x.shape
    d = c // layer.heads
    out = torch.zeros(b, c, height * width, dtype=x.dtype)
    for head in range(layer.heads):
        if legacy:
            q, k, v = (qkv[:, head * 3 * d + part * d : head * 3 * d + (part + 1) * d] for part in range(3))
        else:
            q, k, v = (qkv[:, part * c + head * d : part * c + (head + 1) * d] for part in range(3))
        scores = torch.zeros(b, height * width, height * width, dtype=x.dtype)
        for i in range(height * width):
            for j in range(height * width):
                scores[:, i, j] = (q[:, :, i] * k[:, :, j]).sum(1) / d**0.5
        out[:, head * d : (head + 1) * d] = torch.einsum("bij,bdj->bdi", scores.softmax(2), v)
    return x + torch.nn.functional.conv1d(out, layer.proj_out.weight.flatten(2), layer.proj_out.bias).view_as(x)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("order", ["legacy", "new"])
def test_guided_diffusions_orders_of_attention(tmp_path: Path, order: str, ending: str) -> None:
    torch.manual_seed(0)
    net = two_heads().double()
    attention = net.middle_block[1]
    assert attention.heads == 2
    theirs = {
        name: value.squeeze(-1).float() if "qkv.weight" in name or "proj_out.weight" in name else value.float()
        for name, value in net.state_dict().items()
    }
    assert theirs["middle_block.1.qkv.weight"].dim() == 3
    url = write(tmp_path / f"theirs{ending}", theirs)
    x = torch.randn(2, 16, 2, 2, dtype=torch.float64)
    weight, bias = theirs["middle_block.1.qkv.weight"].double(), theirs["middle_block.1.qkv.bias"].double()
    qkv = torch.nn.functional.conv1d(attention.norm(x).flatten(2), weight, bias)
    expected = {name: by_hand(attention, x, qkv, name == "legacy") for name in ("legacy", "new")}
    released.load(net, released.read(url, 8, order), url)  # type: ignore[arg-type]
    torch.testing.assert_close(attention(x), expected[order])
    assert not torch.allclose(expected["legacy"], expected["new"], atol=1e-3)


def test_an_order_that_cannot_be_seen_must_be_given_and_one_that_is_known_must_not(tmp_path: Path) -> None:
    weights = two_heads().state_dict()
    ours = write(tmp_path / "ours.pt", weights)
    theirs = write(
        tmp_path / "theirs.pt",
        {n: v.squeeze(-1) if v.dim() == 4 and v.shape[2:] == (1, 1) else v for n, v in weights.items()},
    )
    with pytest.raises(
        ConfigError, match="guided-diffusion's attention, whose order cannot be seen: .* --qkv-order legacy .* or new"
    ):
        released.read(theirs, 8)
    with pytest.raises(ConfigError, match="this one's order is known"):
        released.read(ours, 8, "legacy")


class Command:
    """What a malicious pickle looks like: loading it runs a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("form", ["torch", "old torch", "plain pickle"])
def test_no_code_of_a_file_is_run(tmp_path: Path, form: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / "cd_evil.pt"
    evil = {"time_embed.0.weight": torch.zeros(2), "more": Command(proof)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Command(proof)))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "torch")
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(pickle.dumps(Command(proof)))
    assert proof.exists()  # the trap works
    proof.unlink()
    with pytest.raises(CheckpointError, match=r"cd_evil.pt .*holds more than tensors .*nothing of it was run"):
        released.read(str(path), 8)
    assert not proof.exists()


def test_what_is_no_flat_dictionary_or_damaged_is_a_sentence(tmp_path: Path) -> None:
    weights = two_heads().state_dict()
    cases = {
        "wrapped.pt": ({"state_dict": weights, "step": 3}, "it holds: state_dict, step; save the state_dict inside"),
        "list.pt": ([1, 2], "it holds: list"),
        "empty.pt": ({}, "it holds: dict"),
    }
    for name, (content, says) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=says):
            released.read(str(tmp_path / name), 8)
    for ending in ENDINGS:
        whole = Path(write(tmp_path / f"whole{ending}", weights)).read_bytes()
        for name, content in (("cut", whole[: len(whole) // 2]), ("none", b""), ("text", b"<html>not found</html>")):
            (tmp_path / f"{name}{ending}").write_bytes(content)
            with pytest.raises(CheckpointError, match=rf"{name}{ending} cannot be read: it is damaged") as error:
                released.read(str(tmp_path / f"{name}{ending}"), 8)
            assert "\n" not in str(error.value)
        with pytest.raises(CheckpointError, match=rf"there is no file .*missing{ending}"):
            released.read(str(tmp_path / f"missing{ending}"), 8)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_on_a_store_is_the_same(tmp_path: Path, ending: str, zipped: bool) -> None:
    weights, path = two_heads().state_dict(), tmp_path / f"a{ending}"
    write(path, weights)
    if ending != ".safetensors":
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    storage.write(f"memory://released/a{ending}", path.read_bytes())
    found = released.read(f"memory://released/a{ending}", 8)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.pt", two_heads().state_dict()))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(
        CheckpointError, match=r"a\.pt is damaged: .* in it does not have its checksum; fetch it again$"
    ):
        released.read(str(path), 8)


def test_a_file_that_was_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        url = write(tmp_path / "a.pt", two_heads().state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    released.read(url, 8)


def test_rubbish_is_one_sentence_of_ours(tmp_path: Path) -> None:
    rubbish = {
        "stop": b"\x80\x02.",
        "text": b"plain text",
        "nothing": bytes(1000),
        "empty archive": b"PK\5\6" + bytes(18),
    }
    for name, content in rubbish.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(
            CheckpointError, match=rf"{name}\.pt cannot be read: it is damaged, .*; a flat state_dict .* is needed$"
        ):
            released.read(str(tmp_path / f"{name}.pt"), 8)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            torch.zeros(2, dtype=torch.int8),
            "x is a tensor of torch.int8, torch.strided, cpu; plain floating-point ones are read",
        ),
        (torch.zeros(2, dtype=torch.complex64), "x is a tensor of torch.complex64"),
        (torch.zeros(2, device="meta"), "x is a tensor of torch.float32, torch.strided, meta"),
        (torch.zeros(2).to_sparse(), "x is a tensor of torch.float32, torch.sparse_coo, cpu"),
        (torch.tensor([1.0, float("nan")]), "x has values that are not finite"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, value: Tensor, says: str) -> None:
    torch.save({"x": value}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=re.escape(says)):
        released.read(str(tmp_path / "a.pt"), 8)


def test_heads_that_do_not_divide_are_named(tmp_path: Path) -> None:
    url = write(tmp_path / "a.pt", {"1.qkv.weight": torch.zeros(100, 32, 1)})
    with pytest.raises(
        ConfigError,
        match=r"1\.qkv\.weight has 100 rows, which are not heads of 3 x 8: network\.head_channels is another",
    ):
        released.read(url, 8, "legacy")


def test_another_architecture_is_refused_with_the_first_names() -> None:
    net = small()
    weights = net.state_dict() | {"extra.weight": torch.zeros(3)}
    del weights["label_emb.weight"]
    weights["out.2.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as error:
        released.load(net, weights, "x.pt")
    assert str(error.value) == (
        "x.pt has another architecture: label_emb.weight is missing there and [10, 32] here, out.2.bias is [2] there "
        "and [1] here, "
        "extra.weight is [3] there and missing here; network.* must be equal"
    )
    with pytest.raises(
        CheckpointError, match=r"time_embed.0.weight is \[32, 8\] there and \[64, 16\] here, .*, and \d+ more;"
    ):
        released.load(small(model_channels=16), net.state_dict(), "x.pt")


# --- wired in: teacher, init, sample

BASE = """
objective: consistency_distillation
run: {name: a}
data: {url: x, image_size: 8, channels: 1, classes: 10}
network: {model_channels: 8, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [4], head_channels: 8,
          norm_groups: by_width}
optimizer: {lr: 1.0e-3}
train: {steps: 10, global_batch: 64, micro_batch: 32, precision: fp32}
"""


def test_a_file_is_a_teacher_with_edms_scalings(tmp_path: Path) -> None:
    net = small()
    url = write(tmp_path / "edm_small_ema.pt", net.state_dict())
    c = config.parse(BASE, [f"objective.teacher={url}"])
    found = teachers.teacher(c, None, torch.device("cpu"))  # type: ignore[arg-type]
    x, _, labels = inputs()
    sigma = torch.tensor([0.002, 1.0, 80.0])
    s = sigma.view(-1, 1, 1, 1)
    c_skip, c_out, c_in = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt(), 1 / (s**2 + 0.25).sqrt()
    torch.testing.assert_close(
        found(s * x, sigma, labels), c_skip * s * x + c_out * net(c_in * s * x, sigma.log() / 4, labels)
    )
    assert not any(p.requires_grad for p in found.net.parameters()) and not found.net.training


@pytest.mark.parametrize("name", ["cd_imagenet64_l2.pt", "ct_bedroom256.pt"])
def test_a_consistency_model_is_no_teacher(tmp_path: Path, name: str) -> None:
    url = write(tmp_path / name, small().state_dict())
    with pytest.raises(ConfigError, match=f"{name} is a consistency model by its name, and a denoiser is needed here"):
        teachers.teacher(config.parse(BASE, [f"objective.teacher={url}"]), None, torch.device("cpu"))  # type: ignore[arg-type]


def test_init_takes_a_file_directly_or_as_the_teachers(tmp_path: Path) -> None:
    wanted, net = small().state_dict(), small()
    url = write(tmp_path / "edm_small_ema.pt", wanted)
    for overrides in ([f"init={url}", "objective.teacher=exact"], [f"objective.teacher={url}", "init=teacher"]):
        for p in net.parameters():
            torch.nn.init.normal_(p)
        build.initialise(config.parse(BASE, overrides), net)
        assert all(torch.equal(value, wanted[name]) for name, value in net.state_dict().items())
    with pytest.raises(CheckpointError, match=r"init: .*edm_small_ema.pt has another architecture"):
        build.initialise(config.parse(BASE, [f"objective.teacher={url}", "init=teacher"]), small(model_channels=16))


def test_sample_draws_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = pipeline("sample")
    (tmp_path / "c.yaml").write_text(BASE + "teacher: exact\n")
    url = write(tmp_path / "cd_small.pt", small().state_dict())
    call(sample.main, tmp_path / "c.yaml", "--weights", url, "--out", tmp_path / "s.png", "--rows", "1")
    assert capsys.readouterr().out.strip() == str(tmp_path / "s.png") and (tmp_path / "s.png").stat().st_size > 1000
    model = build.open_model(str(tmp_path / "c.yaml"), file=url)
    assert model.title == "cd_small.pt"
    x, _, labels = inputs()
    assert torch.equal(
        model.denoiser()(x, torch.full((3,), 0.002), labels), x
    )  # the boundary condition of a consistency model
    for arguments, says in (
        (
            [tmp_path / "c.yaml", "--weights", write(tmp_path / "edm_a.pt", small().state_dict())],
            "is a denoiser by its name",
        ),
        (
            [tmp_path / "c.yaml", "--weights", "a.bin"],
            r"a.bin is not a file of weights; its name must end in .pt, .pth, .safetensors",
        ),
        ([tmp_path / "c.yaml", tmp_path / "c.yaml", "--weights", url], "one configuration file is given"),
        ([tmp_path / "c.yaml", "--weights", url, "--ema", "0.9"], "no --ema"),
        ([tmp_path / "run", "--qkv-order", "new"], "--qkv-order is for files of weights"),
    ):
        with pytest.raises(ConfigError, match=says):
            call(sample.main, *arguments, "--out", tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()
