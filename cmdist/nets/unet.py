"""The U-Net of ADM (Dhariwal & Nichol 2021, section 3 and appendix) with the parameter names and shapes of the released
consistency models.

Names are fixed by those weights: `input_blocks.i`, `middle_block`, `output_blocks.i` are lists of layers; a layer is a
residual block, an attention block, or a plain resampling convolution. Everything between the first convolution and the
head runs in the given precision.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmdist.errors import ConfigError
from cmdist.nets.checks import check_guidance, check_inputs, check_levels
from cmdist.nets.embedding import GuidanceEmbedding, LabelEmbedding, fourier_features, timestep_embedding
from cmdist.nets.forward_mode import Conv2d, Linear, linear
from cmdist.nets.group_norm import GroupNorm, pixel_norm

Precision = Literal["fp32", "bf16", "fp16"]
Resample = Literal["up", "down"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
# before the names of what takes a second noise level, and a scale of guidance: no weights of a denoiser have them
OF_STUDENTS = ("next_embed.", "guidance_embed.")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ResBlock(nn.Module):
    """BigGAN residual block, (B, in, H, W) and embedding (B, 4c) -> (B, out, H', W');
    H' is 2H for 'up' and H/2 for 'down'.

    The embedding scales and shifts the second normalization (scale_shift) or is added before it. `double_norm`: scale
    and shift are normalised at each place themselves (sCM, Lu & Song 2024, section 4.1).
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        emb: int,
        dropout: float,
        scale_shift: bool,
        resample: Resample | None = None,
        double_norm: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift, self.double_norm = scale_shift, double_norm
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm(channels_in), nn.SiLU(), Conv2d(channels_in, channels, 3, padding=1))
        # The place of the SiLU in the released names; UNet.forward applies it once for all blocks.
        self.emb_layers = nn.Sequential(nn.Identity(), Linear(emb, 2 * channels if scale_shift else channels))
        self.out_layers = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), nn.Dropout(dropout), _zero(Conv2d(channels, channels, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if channels == channels_in else Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, in, H, W), (B, 4c) -> (B, out, H', W')."""
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample:
            h, x = _resample(h, self.resample), _resample(x, self.resample)
        h = self.in_layers[2](h)
        e = self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            scale = 1 + scale
            if self.double_norm:
                scale, shift = pixel_norm(scale), pixel_norm(shift)
            h = torch.addcmul(shift, norm(h), scale)
        else:
            h = norm(h + e)
        for layer in rest:
            h = layer(h)
        return cast(Tensor, self.skip_connection(x) + h)


class Attention(nn.Module):
    """Self-attention over the H*W places, (B, C, H, W) -> the same.
    The channels of `qkv` are ordered (3, heads, head_channels).
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = GroupNorm(channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.proj_out = _zero(Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        b, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # The 1x1 convolutions as products: a few per cent of the whole network on a CPU.
        qkv = linear(tokens, self.qkv.weight.flatten(1), self.qkv.bias)
        q, k, v = qkv.view(b, height * width, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(
            q, k, v
        )  # forward-mode differentiation: only under sdpa_kernel(SDPBackend.MATH)
        h = linear(h.transpose(1, 2).reshape(b, height * width, c), self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + h.transpose(1, 2).reshape(b, c, height, width)


class Downsample(nn.Module):
    """Convolution of stride 2, for networks without resblock_updown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return cast(Tensor, self.op(x))


class Upsample(nn.Module):
    """Nearest x2 and a convolution, for networks without resblock_updown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return cast(Tensor, self.conv(_resample(x, "up")))


class Block(nn.Sequential):
    """Layers in order; the residual blocks among them also get the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W), (B, 4c) -> (B, C', H', W')."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """The network F of a denoiser, for images of one size; its output is 0 at initialization.

    `attention_resolutions` are in pixels of the body, whose channels hold `unshuffle` pixels a side of the image. The
    body runs under autocast to `precision`; the time embedding, the head and the output keep the parameters' dtype
    (fp32). `time_factor` multiplies c_noise before its sinusoids, the released models' 1000; with `fourier_scale` it
    enters as Fourier features of that scale instead. With `second_time` it takes the c_noise of a second noise level
    too, with `told_guidance` a scale of guidance, through MLPs that add 0 at initialization. With `null_label` -1 is
    the label of no class. Raises ConfigError, with one sentence, for a shape that cannot be built.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        head_channels: int = 64,
        num_classes: int | None = None,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        checkpoint_activations: bool = False,
        channels_last: bool = False,
        time_factor: float = 1000.0,
        fourier_scale: float | None = None,
        double_norm: bool = False,
        second_time: bool = False,
        unshuffle: int = 1,
        null_label: bool = False,
        told_guidance: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        _check_shape(
            image_size // unshuffle, model_channels, channel_mult, attention_resolutions, head_channels, precision
        )
        self.image_size, self.num_classes = image_size, num_classes
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.model_channels, self.dropout = model_channels, dropout
        self.time_factor, self.fourier_scale, self.unshuffle = time_factor, fourier_scale, unshuffle
        self.checkpoint_activations, self.precision = checkpoint_activations, precision
        # Of the activations only: weights stay contiguous, as slices of one flat vector; a convolution converts its
        # own.
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        emb = 4 * model_channels

        def res(channels_in: int, channels: int, resample: Resample | None = None) -> ResBlock:
            return ResBlock(channels_in, channels, emb, dropout, scale_shift_norm, resample, double_norm)

        def attention(channels: int, size: int) -> list[nn.Module]:
            return [Attention(channels, head_channels)] if size in attention_resolutions else []

        self.time_embed = nn.Sequential(Linear(model_channels, emb), nn.SiLU(), Linear(emb, emb))
        self.second_time = second_time
        if second_time:
            self.next_embed = nn.Sequential(Linear(model_channels, emb), nn.SiLU(), _zero(Linear(emb, emb)))
        if told_guidance:
            self.guidance_embed = GuidanceEmbedding(emb)
        self.told_guidance = told_guidance
        if num_classes:
            self.label_emb = LabelEmbedding(num_classes, emb, null_label)
        self.null_label = null_label and bool(num_classes)

        channels, size = channel_mult[0] * model_channels, image_size // unshuffle
        inputs = [Block(Conv2d(in_channels * unshuffle**2, channels, 3, padding=1))]
        skips = [channels]  # widths of the outputs of `inputs`, which `output_blocks` takes from the end
        for level, mult in enumerate(channel_mult):
            if level:
                inputs.append(Block(res(channels, channels, "down") if resblock_updown else Downsample(channels)))
                skips.append(channels)
                size //= 2
            for _ in range(num_res_blocks):
                inputs.append(Block(res(channels, mult * model_channels), *attention(mult * model_channels, size)))
                channels = mult * model_channels
                skips.append(channels)
        self.input_blocks = nn.ModuleList(inputs)

        self.middle_block = Block(res(channels, channels), Attention(channels, head_channels), res(channels, channels))

        outputs = []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers: list[nn.Module] = [res(channels + skips.pop(), mult * model_channels)]
                channels = mult * model_channels
                layers += attention(channels, size)
                if level and i == num_res_blocks:
                    layers.append(res(channels, channels, "up") if resblock_updown else Upsample(channels))
                    size *= 2
                outputs.append(Block(*layers))
        self.output_blocks = nn.ModuleList(outputs)

        self.out = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), _zero(Conv2d(channels, self.out_channels * unshuffle**2, 3, padding=1))
        )

    def lower(self) -> "UNet":
        """Keep the body's convolutions and products in `precision`, for a network that does not learn: the same output,
        as autocast would round these weights so at every call. Returns self.
        """
        lower_layers((*self.input_blocks, self.middle_block, *self.output_blocks), DTYPES[self.precision])
        return self

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        c_noise_next: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Images x (B, in_channels, H, W), c_noise (B,) = ln(sigma)/4, labels (B,) int64 iff conditional, c_noise_next
        (B,) iff `second_time`, guidance (B,) with `told_guidance` only, None: 1 -> (B, out_channels, H, W).

        Raises DataError, with one sentence, for images or labels that do not fit the network.
        """
        dtype = next(self.parameters()).dtype
        shape = (self.in_channels, self.image_size, self.image_size)
        check_inputs(shape, self.num_classes, self.null_label, self.second_time, x, labels, c_noise_next)
        check_guidance(self.told_guidance, guidance)
        with torch.autocast(x.device.type, enabled=False):  # the caller's autocast must not reach the time embedding
            emb = self.time_embed(self._features(c_noise))
            if c_noise_next is not None:
                emb = emb + self.next_embed(self._features(c_noise_next))
            if self.told_guidance:
                emb = emb + self.guidance_embed(guidance, emb)
            if labels is not None:
                emb = emb + self.label_emb(labels)
            emb = F.silu(emb)
        with torch.autocast(x.device.type, dtype=DTYPES[self.precision], enabled=self.precision != "fp32"):
            h = F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x
            h = h.to(dtype, memory_format=self.memory_format)
            skips = []
            for block in self.input_blocks:
                h = self._run(block, h, emb)
                skips.append(h)
            h = self._run(self.middle_block, h, emb)
            for block in self.output_blocks:
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb)
        with torch.autocast(x.device.type, enabled=False):
            h = self.out(h.to(dtype))
            return (F.pixel_shuffle(h, self.unshuffle) if self.unshuffle > 1 else h).contiguous()

    def _features(self, c_noise: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        if self.fourier_scale is not None:
            return fourier_features(c_noise, self.model_channels, self.fourier_scale).to(dtype)
        return timestep_embedding(self.time_factor * c_noise, self.model_channels).to(dtype)

    def _run(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # The random state is restored so that the second pass draws the same dropout mask.
            return cast(Tensor, checkpoint(block, h, emb, use_reentrant=False, preserve_rng_state=self.dropout > 0))
        return cast(Tensor, block(h, emb))


def lower_layers(blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Keep the weights of the convolutions and products in `blocks` in `dtype`."""
    for block in blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                for name, p in list(layer.named_parameters(recurse=False)):
                    setattr(layer, name, nn.Parameter(p.data.to(dtype), p.requires_grad))


def _resample(x: Tensor, direction: Resample) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest") if direction == "up" else F.avg_pool2d(x, 2)


def _zero(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_shape(
    size: int, width: int, mult: Sequence[int], attention: Sequence[int], head_channels: int, precision: str
) -> None:
    sizes = check_levels(size, mult, attention)
    attended = {m * width for m, s in zip(mult, sizes, strict=True) if s in attention} | {
        mult[-1] * width
    }  # the last: the middle block
    if odd := sorted(c for c in attended if c % head_channels):
        raise ConfigError(
            f"head_channels {head_channels} must divide the width of every block with attention; it "
            f"does not divide {odd}"
        )
    if precision not in DTYPES:
        raise ConfigError(f"precision '{precision}' is not one of {', '.join(DTYPES)}")
