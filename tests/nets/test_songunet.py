"""DDPM++ and NCSN++ against the names, shapes and numbers of EDM's files, formulas written by hand, and their own
promises.
"""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmdist.core.objectives.base import same_dropout
from cmdist.core.preconditioning import Model, edm_scalings
from cmdist.errors import ConfigError, DataError
from cmdist.nets.songunet import DDPMPP, EPS, NCSNPP, ConvDown, FourierFeatures, Resample, SongUNet
from nets.filled import filled, inputs

HERE = Path(__file__).parent
KINDS = {"ddpmpp": DDPMPP, "ncsnpp": NCSNPP}
PARAMETERS = {"ddpmpp": 55_733_891, "ncsnpp": 56_397_827}


def small(kind: str = "ddpmpp", **changes: object) -> SongUNet:
    """A network whose zero-initialized layers are filled, so that every path counts."""
    arguments: dict = {"image_size": 8, "in_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
    arguments |= {"attention_resolutions": (4,), "num_classes": 10, "augment_dim": 9}
    torch.manual_seed(0)
    return filled(SongUNet(**(arguments | KINDS[kind] | changes)))


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_edms_cifar10_files(kind: str) -> None:
    """All but the filters, which follow from the kind; NCSN++'s frequencies, a buffer there, are a parameter here."""
    with torch.device("meta"):
        net = SongUNet(
            32, 3, model_channels=128, channel_mult=(2, 2, 2), num_blocks=4, attention_resolutions=(16,),
            augment_dim=9, **KINDS[kind],
        )  # fmt: skip
    ours = [f"model.{key} {list(value.shape)}" for key, value in net.state_dict().items()]
    lines = (HERE / f"edm_cifar10_{kind}_keys.txt").read_text().splitlines()[2:]
    assert ours == [line.removesuffix(" buffer") for line in lines if "resample_filter" not in line]
    learned = [p.numel() for name, p in net.named_parameters() if not name.endswith("freqs")]
    assert sum(learned) == PARAMETERS[kind]
    filters = [(m.kernel.shape, m.block) for m in net.modules() if isinstance(m, Resample)]
    side = len(KINDS[kind]["taps"])
    assert set(filters) == {(torch.Size((1, 1, side, side)), side == 2)}


def published() -> tuple[SongUNet, dict[str, Tensor]]:
    """EDM's own tiny DDPM++, and what it was given and gave."""
    stored = {name: torch.from_numpy(value) for name, value in np.load(HERE / "edm_ddpmpp_tiny.npz").items()}
    net = SongUNet(
        16, 3, model_channels=32, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(8,), augment_dim=9, **DDPMPP
    )
    weights = {name.removeprefix("w/model."): value for name, value in stored.items() if name.startswith("w/")}
    net.load_state_dict({name: value for name, value in weights.items() if not name.endswith("resample_filter")})
    return net.eval(), stored


@torch.no_grad()
def test_outputs_are_those_of_edms_network() -> None:
    net, stored = published()
    x, sigma = stored["x"], stored["sigma"]
    raw = net(x, sigma.log() / 4)
    torch.testing.assert_close(raw, stored["raw_at_x_and_lnsigma_over_4"], atol=1e-5, rtol=0)
    denoised = Model(net, edm_scalings(0.5))(x, sigma)
    torch.testing.assert_close(denoised, stored["denoised"], atol=1e-5, rtol=1e-5)
    net.double()
    far = (net(x.double(), sigma.double().log() / 4) - stored["raw_at_x_and_lnsigma_over_4"]).abs().max()
    assert far < 1e-5, "in double precision too: nothing of it is chance"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str, classes: int | None, channels: int) -> None:
    net = small(kind, in_channels=channels, num_classes=classes, second_time=True)
    x, c_noise, labels = inputs(channels)
    y = net(x, c_noise, labels if classes else None, c_noise - 1, torch.randn(3, 9))
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    without = [name for name, p in net.named_parameters() if not p.grad.any()]
    assert without == (["map_noise.freqs"] if kind == "ncsnpp" else []), "the frequencies stay as they were drawn"


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_zero_at_initialization(kind: str) -> None:
    torch.manual_seed(0)
    net = SongUNet(8, 1, model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), **KINDS[kind])
    x, c_noise, _ = inputs()
    assert not net(x, c_noise).any()
    zero = {
        name.removesuffix(".weight") for name, p in net.named_parameters() if name.endswith("weight") and not p.any()
    }
    assert zero == {name for name, _ in net.named_modules() if name.endswith(("conv1", "proj", "aux_conv"))}


def test_embedding_against_its_formula() -> None:
    """Sines before cosines, of frequencies from 1 to 1/10000 and no time factor; labels by the root of the classes."""
    net = small(image_size=4, channel_mult=(1,), attention_resolutions=(), augment_dim=9).double()
    seen: list[Tensor] = []
    net.dec["4x4_in0"].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    x, c_noise, labels = inputs(size=4)
    augment = torch.randn(3, 9, dtype=torch.float64)
    net(x.double(), c_noise.double(), labels, augment_labels=augment)
    weights = net.state_dict()
    for i in range(3):
        angles = [float(c_noise[i]) * 10000 ** (-k / 3) for k in range(4)]
        e = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
        e = e + weights["map_label.weight"][:, i] * math.sqrt(10) + weights["map_label.bias"]
        e = e + weights["map_augment.weight"] @ augment[i]
        for layer in ("map_layer0", "map_layer1"):
            e = F.silu(weights[f"{layer}.weight"] @ e + weights[f"{layer}.bias"])
        torch.testing.assert_close(seen[0][i], e, atol=1e-6, rtol=1e-6)


def test_fourier_features_against_their_formula() -> None:
    net = small("ncsnpp")
    assert net.map_noise is not None
    freqs, c = net.map_noise.freqs, torch.tensor([0.3, -1.2])
    angles = 2 * math.pi * freqs[None] * c[:, None]
    torch.testing.assert_close(net.map_noise(c), torch.cat([angles.sin(), angles.cos()], 1))
    assert freqs.shape == (8,)  # of a width of 2 x 8
    assert 15 < float(FourierFeatures(4000).freqs.detach().std()) < 17


def test_no_augmentation_is_none_and_zeros() -> None:
    net = small()
    x, c_noise, labels = inputs()
    y = net(x, c_noise, labels)
    assert torch.equal(y, net(x, c_noise, labels, augment_labels=torch.zeros(3, 9)))
    assert not torch.allclose(y, net(x, c_noise, labels, augment_labels=torch.ones(3, 9)), atol=1e-4)
    bare = small(augment_dim=0)
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if k != "map_augment.weight"})
    assert torch.equal(y, bare(x, c_noise, labels))
    y.sum().backward()  # a trainer reduces every gradient, so each must be there
    grad = net.map_augment.weight.grad  # type: ignore[union-attr]
    assert grad is not None and not grad.any()


def test_the_label_of_no_class_is_a_row_of_zeros() -> None:
    """With no weight of its own: a published network's weights fit."""
    net, plain = small(null_label=True), small()
    assert list(net.state_dict()) == list(plain.state_dict())
    x, c_noise, _ = inputs()
    y = net(x, c_noise, torch.tensor([-1, 0, 9]))
    assert torch.equal(y[1:], plain(x, c_noise, torch.tensor([1, 0, 9]))[1:])
    net.map_label.weight.data.zero_()  # type: ignore[union-attr]
    torch.testing.assert_close(net(x, c_noise, torch.tensor([5, 0, 9]))[0], y[0])
    with pytest.raises(DataError, match=r"labels lie in -1\.\.0"):
        plain(x, c_noise, torch.tensor([-1, 0, 0]))


def direct(x: Tensor, line: Tensor, up: bool) -> Tensor:
    """The filter of one picture (H, W) with zeros outside, one number at a time."""
    height, width, n = *x.shape, len(line)
    before = n // 2 - 1
    if up:
        large = torch.zeros(2 * height + 2 * n, 2 * width + 2 * n, dtype=x.dtype)
        for i in range(height):
            for j in range(width):
                for a in range(n):
                    for b in range(n):
                        large[n + 2 * i - before + a, n + 2 * j - before + b] += 4 * x[i, j] * line[a] * line[b]
        return large[n : n + 2 * height, n : n + 2 * width]
    small_ = torch.zeros(height // 2, width // 2, dtype=x.dtype)
    for i in range(height // 2):
        for j in range(width // 2):
            for a in range(n):
                for b in range(n):
                    y, z = 2 * i - before + a, 2 * j - before + b
                    if 0 <= y < height and 0 <= z < width:
                        small_[i, j] += x[y, z] * line[a] * line[b]
    return small_


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_resampling_against_its_sum(direction: str, taps: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    y = Resample(direction, taps).double()(x)  # type: ignore[arg-type]
    expected = torch.stack([torch.stack([direct(c, line, direction == "up") for c in image]) for image in x])
    torch.testing.assert_close(y, expected)


def test_the_convolution_down_is_fused_with_the_filter() -> None:
    """Beyond the border the picture is 0, and what the convolution makes there counts: its bias in full too."""
    torch.manual_seed(0)
    layer = ConvDown(2, 3, (1, 3, 3, 1)).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    wide = F.conv2d(F.pad(x, (6, 6, 6, 6)), layer.weight, layer.bias, padding=1)[0]
    line = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    expected = torch.stack([direct(c, line, False) for c in wide])[None, :, 3:-3, 3:-3]
    torch.testing.assert_close(layer(x), expected)
    layer.weight.data.zero_()
    torch.testing.assert_close(layer(x), layer.bias.view(1, 3, 1, 1).expand(1, 3, 4, 4))


def test_the_residual_encoder_against_its_formula() -> None:
    """The picture, smaller, is added at each level over the root of 2, and the sum is the next picture and the skip."""
    net = small("ncsnpp", image_size=16, channel_mult=(1, 2, 2), attention_resolutions=(8,), num_classes=None)
    made: dict[str, Tensor] = {}
    used: dict[str, Tensor] = {}
    for name, layer in net.named_modules():
        layer.register_forward_hook(lambda _m, _a, out, name=name: made.__setitem__(name, out))
        layer.register_forward_pre_hook(lambda _m, args, name=name: used.__setitem__(name, args[0]))
    x = inputs(size=16)[0]
    net(x, torch.zeros(3))
    first = (made["enc.8x8_down"] + net.enc["8x8_aux_residual"](x)) * math.sqrt(0.5)
    second = (made["enc.4x4_down"] + net.enc["4x4_aux_residual"](first)) * math.sqrt(0.5)
    torch.testing.assert_close(used["enc.8x8_block0"], first)
    torch.testing.assert_close(used["enc.4x4_block0"], second)
    skips = [
        made["enc.16x16_conv"],
        made["enc.16x16_block0"],
        first,
        made["enc.8x8_block0"],
        second,
        made["enc.4x4_block0"],
    ]
    assert len(skips) == 6
    for name in [name for name in net.dec if "block" in name]:
        skip = skips.pop()
        torch.testing.assert_close(used[f"dec.{name}"][:, -skip.shape[1] :], skip)


def test_attention_is_where_the_papers_have_it() -> None:
    net = small(image_size=16, channel_mult=(1, 2, 2), num_blocks=2, attention_resolutions=(8,))
    assert [name for name, m in net.named_modules() if name.endswith("qkv")] == [
        *("enc.8x8_block0.qkv", "enc.8x8_block1.qkv", "dec.4x4_in0.qkv", "dec.8x8_block2.qkv")
    ]
    assert {m.eps for m in net.modules() if isinstance(m, torch.nn.GroupNorm)} == {EPS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_is_inside_and_the_output_is_fp32(kind: str, precision: str) -> None:
    net, plain = small(kind, precision=precision), small(kind)
    dtypes: dict[str, torch.dtype] = {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _a, out, name=name: dtypes.__setitem__(name, out.dtype))
    x, c_noise, labels = inputs()
    y = net(x, c_noise, labels)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    outside = ("map_", "dec.8x8_aux_conv")
    assert {dtypes[n] for n in dtypes if n.startswith(outside)} == {y.dtype} == {torch.float32}
    assert {dtypes[n] for n in dtypes if not n.startswith(outside)} == {half}
    expected = plain(x, c_noise, labels)
    assert 0 < float(((y - expected).norm() / expected.norm()).detach()) < {"bf16": 0.03, "fp16": 0.004}[precision]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(x, c_noise, labels), expected), "the caller's autocast does not reach inside"
    y.sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}
    lowered = copy.deepcopy(net).requires_grad_(False).lower()
    with torch.no_grad():  # a CPU's kernels of 16 bits may be others where there is a gradient
        assert torch.equal(net(x, c_noise, labels), lowered(x, c_noise, labels))
    assert {p.dtype for n, p in lowered.named_parameters() if n.startswith(outside)} == {torch.float32}
    assert lowered.enc["8x8_block0"].conv0.weight.dtype == half  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"checkpoint_activations": True}, {"dropout": 0.2}])
def test_forward_mode_derivative(kind: str, changes: dict[str, object]) -> None:
    """Compared with central differences in float64."""
    net = small(kind, **changes).double()
    x, c_noise, labels = inputs()
    x, c_noise = x.double(), c_noise.double()
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h, sides = 1e-6, []

    def at(a: Tensor, b: Tensor) -> Tensor:
        with same_dropout(3, x.device):
            return net(a, b, labels)  # type: ignore[no-any-return]

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        sides = [at(x + side * dx, c_noise + side) for side in (h, -h)]
        _, dy = torch.func.jvp(at, (x, c_noise), (dx, torch.ones_like(c_noise)))
    torch.testing.assert_close(dy, (sides[0] - sides[1]) / (2 * h), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"channels_last": True}, {"checkpoint_activations": True, "dropout": 0.5}])
def test_memory_format_and_checkpointing_change_no_gradient(kind: str, changes: dict[str, object]) -> None:
    x, c_noise, labels = inputs()
    results = []
    for how in ({"dropout": changes.get("dropout", 0.0)}, changes):
        net = small(kind, **how).train()
        torch.manual_seed(5)
        y = net(x, c_noise, labels)
        torch.manual_seed(6)  # a second pass must not take its masks from here
        y.square().sum().backward()
        assert y.is_contiguous() and all(p.grad.is_contiguous() for p in net.parameters())
        results.append([y.detach(), *(p.grad for p in net.parameters())])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(plain, other, atol=1e-4, rtol=1e-4)


def test_a_second_noise_level_adds_nothing_at_first_and_counts_afterwards() -> None:
    plain, two = (small(second_time=s, num_classes=None) for s in (False, True))
    new = {name for name in two.state_dict() if name not in plain.state_dict()}
    assert new == {f"next_embed.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    two.load_state_dict({**two.state_dict(), **plain.state_dict()})
    torch.nn.init.zeros_(two.next_embed[2].weight)
    torch.nn.init.zeros_(two.next_embed[2].bias)
    x, level, _ = inputs()
    assert torch.equal(two(x, level, None, level - 1), plain(x, level))
    two.next_embed[2].weight.data.normal_()
    assert not torch.allclose(two(x, level, None, level - 1), two(x, level, None, level - 2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 9}, "image_size 9 must be divisible by 2, for channel_mult has 2 levels"),
        ({"attention_resolutions": (5,)}, r"attention_resolutions \[5\] do not occur .* in pixels: \[8, 4\]"),
        ({"model_channels": 7}, "model_channels 7 must be even, and at least 4"),
        ({"model_channels": 2}, "model_channels 2 must be even, and at least 4"),
        ({"precision": "fp8"}, "precision 'fp8' is not one of fp32, bf16, fp16"),
    ],
)
def test_impossible_shapes_are_refused_in_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        small(**changes)
    assert "\n" not in str(error.value)


def test_inputs_that_do_not_fit_are_refused() -> None:
    net, (x, c_noise, labels) = small(), inputs()
    for given, sentence in (
        ((x.expand(-1, 3, -1, -1), c_noise, labels), r"shape \(3, 8, 8\) .* for \(1, 8, 8\)"),
        ((x, c_noise), "labels are missing: this network is conditional on 10 classes"),
        ((x, c_noise, labels + 8), r"labels lie in 8\.\.10, but this network knows 0\.\.9"),
        ((x, c_noise, labels, c_noise), "given to a network without second_time"),
        ((x, c_noise, labels, None, torch.zeros(3, 8)), r"labels of shape \(3, 8\) .* augment_dim 9 and 3 images"),
    ):
        with pytest.raises(DataError, match=sentence):
            net(*given)
    with pytest.raises(DataError, match="augment_dim 0"):
        small(augment_dim=0)(x, c_noise, labels, augment_labels=torch.zeros(3, 9))
