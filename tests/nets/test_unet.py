"""The U-Net against the released weights' names and shapes, hand-written layers, and its own promises."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmdist.core.objectives.base import same_dropout
from cmdist.errors import ConfigError, DataError
from cmdist.nets.embedding import fourier_features, timestep_embedding
from cmdist.nets.unet import Attention, Block, GroupNorm, ResBlock, UNet
from nets.filled import inputs, small

RELEASED = {
    "imagenet64": (
        295_899_267,
        541,
        {
            "image_size": 64,
            "model_channels": 192,
            "channel_mult": (1, 2, 3, 4),
            "num_res_blocks": 3,
            "num_classes": 1000,
        },
    ),
    "lsun256": (
        526_304_771,
        566,
        {
            "image_size": 256,
            "model_channels": 256,
            "channel_mult": (1, 1, 2, 2, 4, 4),
            "num_res_blocks": 2,
            "scale_shift_norm": False,
        },
    ),
}


DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes_are_those_of_the_released_weights(name: str) -> None:
    parameters, tensors, shape = RELEASED[name]
    with torch.device("meta"):
        net = UNet(attention_resolutions=(32, 16, 8), **shape)
    ours = [f"{key} {tuple(value.shape)}" for key, value in net.state_dict().items()]
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(ours) == tensors
    assert ours == (Path(__file__).parent / f"{name}_keys.txt").read_text().splitlines()


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_networks_have_32_groups_everywhere(name: str) -> None:
    with torch.device("meta"):
        net = UNet(attention_resolutions=(32, 16, 8), **RELEASED[name][2])
    norms = [m for m in net.modules() if isinstance(m, GroupNorm)]
    assert norms
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-5)}


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 2), (16, 4), (18, 3), (32, 8), (48, 12), (128, 32), (1344, 32), (2, 1)]
)
def test_groups_of_small_widths(channels: int, groups: int) -> None:
    assert GroupNorm(channels).num_groups == groups


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("updown", [True, False])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_forward_shapes_and_a_gradient_for_every_parameter(
    channels: int, classes: int | None, updown: bool, scale_shift: bool
) -> None:
    net = small(in_channels=channels, num_classes=classes, resblock_updown=updown, scale_shift_norm=scale_shift)
    x, c_noise, labels = inputs(channels)
    y = net(x, c_noise, labels if classes else None)
    assert y.shape == x.shape
    y.square().sum().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_other_numbers_of_channels_and_levels() -> None:
    net = small(
        image_size=12,
        in_channels=3,
        out_channels=6,
        channel_mult=(1, 1, 2),
        num_res_blocks=2,
        attention_resolutions=(6, 3),
    )
    x, c_noise, labels = inputs(3, 12)
    assert net(x, c_noise, labels).shape == (3, 6, 12, 12)
    attended = [name for name, m in net.named_modules() if isinstance(m, Attention)]
    assert attended == [
        *("input_blocks.4.1", "input_blocks.5.1", "input_blocks.7.1", "input_blocks.8.1", "middle_block.1"),
        *(f"output_blocks.{i}.1" for i in range(6)),
    ]


def test_output_is_zero_at_initialization() -> None:
    net = UNet(
        8, 1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_channels=8
    )
    x, c_noise, _ = inputs()
    assert not net(x, c_noise).any()
    zero = {
        name.removesuffix(".weight") for name, p in net.named_parameters() if name.endswith("weight") and not p.any()
    }
    last = {name for name, _ in net.named_modules() if name.endswith(("out_layers.3", "proj_out")) or name == "out.2"}
    assert zero == last


def test_every_image_is_treated_alone() -> None:
    net = small().double()
    x, c_noise, labels = inputs()
    together = net(x.double(), c_noise, labels)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], net(x[i : i + 1].double(), c_noise[i : i + 1], labels[i : i + 1])
        )


def test_noise_level_and_label_matter() -> None:
    net = small()
    x, c_noise, labels = inputs()
    y = net(x, c_noise, labels)
    assert not torch.allclose(y, net(x, c_noise + 0.01, labels), atol=1e-4)
    assert not torch.allclose(y, net(x, c_noise, labels + 1), atol=1e-4)


def test_timestep_embedding_against_its_formula() -> None:
    t, width = torch.tensor([1000 * 0.25 * math.log(80.0), -3.5]), 6
    expected = [
        [math.cos(v * 10000 ** (-i / 3)) for i in range(3)] + [math.sin(v * 10000 ** (-i / 3)) for i in range(3)]
        for v in t.tolist()
    ]
    torch.testing.assert_close(timestep_embedding(t.double(), width), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(timestep_embedding(t, width), torch.tensor(expected), atol=2e-4, rtol=0)
    assert timestep_embedding(t, 7).shape == (2, 7)
    assert timestep_embedding(t.bfloat16(), width).dtype == torch.float32


def test_the_network_multiplies_c_noise_by_1000() -> None:
    net = small()
    seen: list[Tensor] = []
    net.time_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, c_noise, labels = inputs()
    net(x, c_noise, labels)
    torch.testing.assert_close(seen[0], timestep_embedding(1000 * c_noise, 8))


def test_fourier_features_are_of_a_normal_laws_quantiles() -> None:
    """The mean over a normal f of cos(2 pi f c) is exp(-2 (pi scale c)^2); and a network takes them where asked."""
    c = torch.tensor([0.0, 0.3, 1.5], dtype=torch.float64)
    found = fourier_features(c, 2000, 0.2)
    assert found.shape == (3, 2000) and fourier_features(c, 7, 0.2).shape == (3, 7)
    torch.testing.assert_close(found[:, :1000].mean(1), (-2 * (math.pi * 0.2 * c) ** 2).exp(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, :1000] ** 2 + found[:, 1000:] ** 2, torch.ones(3, 1000, dtype=torch.float64))
    net = small(fourier_scale=0.02)
    seen: list[Tensor] = []
    net.time_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, c_noise, labels = inputs()
    net(x, c_noise, labels)
    torch.testing.assert_close(seen[0], fourier_features(c_noise, 8, 0.02))


def test_blocks_get_the_silu_of_the_sum_of_time_and_label_embeddings() -> None:
    net = small()
    seen: list[Tensor] = []
    net.middle_block.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    x, c_noise, labels = inputs()
    net(x, c_noise, labels)
    emb = net.time_embed(timestep_embedding(1000 * c_noise, 8)) + net.label_emb.weight[labels]
    torch.testing.assert_close(seen[0], emb * emb.sigmoid())


def test_group_norm_of_half_precision_is_computed_in_fp32() -> None:
    norm = GroupNorm(8)
    x = (100 + 2 * torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())


def test_attention_channel_order_is_3_heads_head_channels() -> None:
    """A hand-written attention, one head and one pair of places at a time."""
    torch.manual_seed(0)
    heads, d, places = 2, 4, 6
    channels = heads * d
    layer = Attention(channels, d).double()
    torch.nn.init.normal_(layer.proj_out.weight)
    torch.nn.init.normal_(layer.proj_out.bias)
    x = torch.randn(2, channels, 2, 3, dtype=torch.float64)
    qkv = F.conv2d(layer.norm(x), layer.qkv.weight, layer.qkv.bias).flatten(2)
    h = torch.zeros(2, channels, places, dtype=torch.float64)
    for b in range(2):
        for head in range(heads):
            q, k, v = (qkv[b, part * channels + head * d : part * channels + (head + 1) * d] for part in range(3))
            for i in range(places):
                scores = torch.stack([(q[:, i] * k[:, j]).sum() / math.sqrt(d) for j in range(places)])
                weights = scores.exp() / scores.exp().sum()
                h[b, head * d : (head + 1) * d, i] = (weights * v).sum(1)
    expected = x + F.conv2d(h.view(2, channels, 2, 3), layer.proj_out.weight, layer.proj_out.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("scale_shift", "double_norm"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_residual_block_against_its_formula(scale_shift: bool, double_norm: bool, resample: str | None) -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 16, 32, 0.0, scale_shift, resample, double_norm).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(block.out_layers[3].weight)
    x, emb = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    weights = block.state_dict()

    def norm(h: Tensor, name: str) -> Tensor:
        groups = h.reshape(2, h.shape[1] // 4, -1)
        h = (
            (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        ).reshape(h.shape)
        return h * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def move(h: Tensor) -> Tensor:
        if resample == "up":
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return h.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)) if resample == "down" else h

    def conv(h: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    for name in ("in_layers.0", "out_layers.0"):  # anything but the identity they begin as
        weights[f"{name}.weight"].normal_()
        weights[f"{name}.bias"].normal_()
    h = norm(x, "in_layers.0")
    h = conv(move(h * h.sigmoid()), "in_layers.2")
    e = (emb @ weights["emb_layers.1.weight"].T + weights["emb_layers.1.bias"])[:, :, None, None]
    scale, shift = 1 + e[:, :16], e[:, 16:]
    if double_norm:
        scale, shift = (v / (v.square().mean(1, keepdim=True) + 1e-8).sqrt() for v in (scale, shift))
    h = norm(h, "out_layers.0") * scale + shift if scale_shift else norm(h + e, "out_layers.0")
    expected = conv(move(x), "skip_connection", 0) + conv(h * h.sigmoid(), "out_layers.3")
    torch.testing.assert_close(block(x, emb), expected)


def test_skips_are_concatenated_behind_in_reverse_order() -> None:
    net = small(num_classes=None)
    made: list[Tensor] = []
    used: list[Tensor] = []
    for block in net.input_blocks:
        block.register_forward_hook(lambda _module, _args, out: made.append(out))
    for block in net.output_blocks:
        block.register_forward_pre_hook(lambda _module, args: used.append(args[0]))
    x, c_noise, _ = inputs()
    net(x, c_noise)
    assert len(made) == len(used) == 4
    for skip, h in zip(reversed(made), used, strict=True):
        assert torch.equal(h[:, -skip.shape[1] :], skip)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_is_inside_and_the_output_is_fp32(precision: str) -> None:
    net, plain = small(precision=precision), small()
    dtypes: dict[str, torch.dtype] = {}
    for name, module in net.named_modules():
        if isinstance(module, Block | torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _a, out, name=name: dtypes.__setitem__(name, out.dtype))
    x, c_noise, labels = inputs()
    y = net(x, c_noise, labels)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert y.dtype == torch.float32
    assert {dtypes[n] for n in dtypes if n.startswith(("time_embed", "out."))} == {torch.float32}
    assert {dtypes[n] for n in dtypes if n.startswith(("input", "middle", "output"))} == {half}
    expected = plain(x, c_noise, labels)
    error = (y - expected).norm() / expected.norm()
    assert 0 < error < {"bf16": 0.03, "fp16": 0.004}[precision]
    y.sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_weights_kept_in_the_precision_give_the_bits_of_autocast(precision: str) -> None:
    """Of the body only: time embedding, normalization and head stay as they are."""
    net = small(precision=precision, attention_resolutions=(4,))
    for parameter in net.parameters():  # so that every layer is heard
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    lowered = copy.deepcopy(net).requires_grad_(False).lower()
    assert torch.equal(net(*inputs()), lowered(*inputs()))
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    for name, parameter in lowered.named_parameters():
        norms = (".norm.", ".in_layers.0.", ".out_layers.0.")
        body = name.startswith(("input", "middle", "output")) and not any(norm in name for norm in norms)
        assert parameter.dtype == (half if body else torch.float32), name


def test_the_callers_autocast_does_not_reach_inside() -> None:
    net = small()
    x, c_noise, labels = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x, c_noise, labels)
    assert torch.equal(y, net(x, c_noise, labels))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing_changes_no_gradient(dropout: float) -> None:
    x, c_noise, labels = inputs()
    results = []
    for checkpoint_activations in (False, True):
        net = small(dropout=dropout, checkpoint_activations=checkpoint_activations).train()
        torch.manual_seed(5)
        y = net(x, c_noise, labels)
        torch.manual_seed(6)  # the second pass must not take its masks from here
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in net.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_activation_checkpointing_runs_the_blocks_again() -> None:
    net = small(checkpoint_activations=True)
    calls: list[int] = []
    net.middle_block[0].register_forward_pre_hook(lambda *_: calls.append(1))
    x, c_noise, labels = inputs()
    net(x, c_noise, labels).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        net(x, c_noise, labels)
    assert len(calls) == 3


def test_dropout_acts_in_training_only() -> None:
    net = small(dropout=0.5)
    x, c_noise, labels = inputs()
    assert not torch.equal(net(x, c_noise, labels), net(x, c_noise, labels))
    net.eval()
    assert torch.equal(net(x, c_noise, labels), net(x, c_noise, labels))


def tangent(net: UNet, x: Tensor, c_noise: Tensor, labels: Tensor, dx: Tensor) -> Tensor:
    """dF along (dx, 1), by forward-mode differentiation."""
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), same_dropout(3, x.device):
        _, dy = torch.func.jvp(lambda a, b: net(a, b, labels), (x, c_noise), (dx, torch.ones_like(c_noise)))
    return dy  # type: ignore[no-any-return]


def test_forward_mode_derivative_in_half_precision() -> None:
    x, c_noise, labels = inputs()
    full, half = (tangent(small(precision=p), x, c_noise, labels, torch.ones_like(x)) for p in ("fp32", "bf16"))
    assert 0 < float((full - half).norm() / full.norm()) < 0.1  # bf16 keeps 8 bits, and many layers round


@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"checkpoint_activations": True}, {"dropout": 0.2}])
def test_forward_mode_derivative_with_plain_attention(changes: dict[str, object]) -> None:
    """Continuous-time objectives need the tangent dF/dt; compared with central differences in float64."""
    net = small(in_channels=3, **changes).double()
    x, c_noise, labels = inputs(3)
    x, c_noise = x.double(), c_noise.double()
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h, sides = 1e-6, []
    for side in (h, -h):
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), same_dropout(3, x.device):
            sides.append(net(x + side * dx, c_noise + side, labels))
    torch.testing.assert_close(
        tangent(net, x, c_noise, labels, dx), (sides[0] - sides[1]) / (2 * h), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 10, "channel_mult": (1, 2, 2)}, "image_size 10 must be divisible by 4"),
        ({"attention_resolutions": (2,)}, r"attention_resolutions \[2\] do not occur .* \[8, 4\]"),
        ({"head_channels": 6}, r"head_channels 6 must divide .* \[16\]"),
        ({"precision": "bfloat16"}, "precision 'bfloat16' is not one of fp32, bf16, fp16"),
    ],
)
def test_a_shape_that_cannot_be_built_is_a_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        small(**changes)


def test_images_and_labels_that_do_not_fit_are_a_sentence() -> None:
    net = small()
    x, c_noise, labels = inputs()
    with pytest.raises(DataError, match=r"shape \(3, 8, 8\) .* for \(1, 8, 8\)"):
        net(x.expand(3, 3, 8, 8), c_noise, labels)
    with pytest.raises(DataError, match=r"shape \(1, 12, 12\) .* for \(1, 8, 8\)"):
        net(torch.zeros(3, 1, 12, 12), c_noise, labels)
    with pytest.raises(DataError, match="labels are missing: this network is conditional on 10 classes"):
        net(x, c_noise)
    with pytest.raises(DataError, match=r"labels lie in 8\.\.10, but this network knows 0\.\.9"):
        net(x, c_noise, labels + 8)
    with pytest.raises(DataError, match=r"labels lie in -1\.\.1"):
        net(x, c_noise, labels - 1)
    with pytest.raises(DataError, match="without classes"):
        small(num_classes=None)(x, c_noise, labels)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_student_and_target_share_dropout_masks(
    checkpoint_activations: bool, precision: str, device: torch.device
) -> None:
    """Equal weights give equal outputs although only the student has a gradient, and its second pass in backward draws
    the same mask.
    """
    student = small(dropout=0.2, checkpoint_activations=checkpoint_activations, precision=precision).train().to(device)
    target = copy.deepcopy(student).requires_grad_(False)
    masks: list[Tensor] = []
    student.middle_block[0].out_layers[2].register_forward_hook(lambda _m, _a, out: masks.append(out == 0))
    x, c_noise, labels = (tensor.to(device) for tensor in inputs())
    with torch.no_grad(), same_dropout(5, x.device):
        goal = target(x, c_noise, labels)
    torch.randn(7)  # the target's pass, or anything else, between the two must not matter
    with same_dropout(5, x.device):
        found = student(x, c_noise, labels)
    if device.type == "cuda":  # 2e-6 of 3.3 on an H100, whether or not the pass has a gradient
        torch.testing.assert_close(found, goal, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found, goal)
    with same_dropout(6, x.device):
        assert not torch.equal(student(x, c_noise, labels), goal)
    masks.clear()
    with same_dropout(5, x.device):
        student(x, c_noise, labels).square().sum().backward()
    assert len(masks) == 1 + checkpoint_activations
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("updown", [True, False])
def test_channels_last_reaches_every_convolution_and_changes_rounding_only(updown: bool, precision: str) -> None:
    x, c_noise, labels = inputs(3)
    results = []
    for channels_last in (False, True):
        net = small(in_channels=3, resblock_updown=updown, channels_last=channels_last, precision=precision)
        formats: list[bool] = []
        for name, module in net.named_modules():
            if isinstance(module, torch.nn.Conv2d) and not name.endswith(("qkv", "proj_out")):
                module.register_forward_pre_hook(
                    lambda _m, args, formats=formats: formats.append(
                        args[0].is_contiguous(memory_format=torch.channels_last)
                    )
                )
        y = net(x, c_noise, labels)
        assert formats and (all(formats) if channels_last else not any(formats))
        assert y.is_contiguous()
        y.square().sum().backward()
        assert all(
            p.is_contiguous() and p.grad.is_contiguous() for p in net.parameters()
        )  # as slices of a flat vector must be
        results.append([y.detach(), *(p.grad for p in net.parameters())])
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True)]
    assert errors[0] < 0.02 if precision == "bf16" else max(errors) < 1e-5


def test_a_second_noise_level_adds_nothing_at_first_and_counts_afterwards() -> None:
    """Its names are new ones beside the released ones, its last layer is zero: a denoiser's weights go on as they
    are.
    """
    torch.manual_seed(0)
    arguments = {"image_size": 8, "in_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    plain, two = (UNet(**arguments, attention_resolutions=(), head_channels=8, second_time=s) for s in (False, True))
    new = {name for name in two.state_dict() if name not in plain.state_dict()}
    assert new == {f"next_embed.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    two.load_state_dict({**two.state_dict(), **plain.state_dict()})
    x, level = torch.randn(3, 1, 8, 8), torch.tensor([0.1, -0.4, 1.0])
    assert torch.equal(two(x, level, None, level - 1), plain(x, level))
    two.next_embed[2].weight.data.normal_()
    assert not torch.allclose(two(x, level, None, level - 1), two(x, level, None, level - 2))
    with pytest.raises(DataError, match="a second noise level is missing"):
        two(x, level)
    with pytest.raises(DataError, match="given to a network without second_time"):
        plain(x, level, None, level)


def test_unshuffled_pixels_are_channels_of_the_body() -> None:
    """A network with `unshuffle` 2 is one of half the size on four times the channels, between the two arrangements."""
    torch.manual_seed(0)
    keys = {"model_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    net = UNet(16, 3, head_channels=16, unshuffle=2, **keys)
    inner = UNet(8, 12, 12, head_channels=16, **keys)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    inner.load_state_dict(net.state_dict())
    x, c_noise = torch.randn(2, 3, 16, 16), torch.tensor([0.1, -0.5])
    wanted = torch.pixel_shuffle(inner(torch.pixel_unshuffle(x, 2), c_noise), 2)
    assert torch.equal(net(x, c_noise), wanted) and wanted.std() > 0.01
    with pytest.raises(ConfigError, match="attention_resolutions"):
        UNet(16, 3, head_channels=16, unshuffle=2, **keys | {"attention_resolutions": (16,)})
