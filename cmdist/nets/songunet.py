"""The networks DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456, section 4.1 and appendix H) as EDM trained them
(Karras et al. 2022, appendix F), with the parameter names and shapes of EDM's files without the wrapper's `model.`.

Names are fixed by those weights: `enc` and `dec` are dictionaries of layers, called by the size of their output:
`32x32_block0`, `16x16_down`. The filters of those files are constants of the architecture, which no state holds.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmdist.errors import ConfigError, DataError
from cmdist.nets.checks import check_guidance, check_inputs, check_levels
from cmdist.nets.embedding import GuidanceEmbedding, positional_features
from cmdist.nets.forward_mode import Conv2d, Linear, linear
from cmdist.nets.group_norm import GroupNorm
from cmdist.nets.unet import DTYPES, Precision, lower_layers

EPS = 1e-6  # of the normalizations
SKIP_SCALE = math.sqrt(0.5)  # of every sum of two branches: their variance stays
FOURIER_SCALE = 16.0  # standard deviation of NCSN++'s frequencies
# What the two are, as arguments of SongUNet.
DDPMPP: dict[str, Any] = {"fourier": False, "residual": False, "taps": (1, 1)}
NCSNPP: dict[str, Any] = {"fourier": True, "residual": True, "taps": (1, 3, 3, 1)}


class Resample(nn.Module):
    """Factor 2 up or down by a separable filter of `taps`, (B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2); outside
    the picture is 0.

    Down, without `padding`, the picture must come with a border of len(taps) / 2 - 1 places already.
    """

    kernel: Tensor

    def __init__(self, direction: Literal["up", "down"], taps: Sequence[int], padding: bool = True) -> None:
        super().__init__()
        self.up, self.padding = direction == "up", len(taps) // 2 - 1 if padding else 0
        self.block = tuple(taps) == (1, 1)  # the mean of 2x2, and the nearest: torch has them
        line = torch.tensor(taps, dtype=torch.get_default_dtype()) / sum(taps) * (2 if self.up else 1)
        self.register_buffer("kernel", torch.outer(line, line)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        if self.block:
            return F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        resampled = F.conv_transpose2d if self.up else F.conv2d
        return resampled(x, kernel, stride=2, padding=self.padding, groups=channels)


class ConvDown(Conv2d):
    """3x3 convolution, then the filter down by 2, in one: the convolution is computed beyond the border as far as the
    filter reaches. (B, in, H, W) -> (B, out, H/2, W/2).
    """

    def __init__(self, channels_in: int, channels: int, taps: Sequence[int]) -> None:
        super().__init__(channels_in, channels, 3, padding=len(taps) // 2)
        self.down = Resample("down", taps, padding=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/2, W/2)."""
        return cast(Tensor, self.down(super().forward(x)))


class Block(nn.Module):
    """Residual block and, where `attention`, self-attention of one head over the H*W places after it:
    (B, in, H, W) and embedding (B, e) -> (B, out, H', W').

    The embedding is added before the second normalization. The channels of `qkv` are ordered (channels, 3).
    """

    def __init__(
        self, channels_in: int, channels: int, emb: int, dropout: float, attention: bool, resample: Resample | None
    ) -> None:
        super().__init__()
        self.dropout, self.resample, self.attention = nn.Dropout(dropout), resample, attention
        self.norm0 = GroupNorm(channels_in, EPS)
        self.conv0 = Conv2d(channels_in, channels, 3, padding=1)
        self.affine = Linear(emb, channels)
        self.norm1 = GroupNorm(channels, EPS)
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Identity() if channels == channels_in and not resample else Conv2d(channels_in, channels, 1)
        if attention:
            self.norm2 = GroupNorm(channels, EPS)
            self.qkv = Conv2d(channels, 3 * channels, 1)
            self.proj = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, in, H, W), (B, e) -> (B, out, H', W')."""
        h = F.silu(self.norm0(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h)
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = (self.skip(x) + self.conv1(self.dropout(h))) * SKIP_SCALE
        return (h + self._attended(h)) * SKIP_SCALE if self.attention else cast(Tensor, h)

    def _attended(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm2(x).flatten(2).transpose(1, 2)

        def thirds_first(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (c, 3)).transpose(0, 1).flatten(0, 1)

        # The 1x1 convolutions as products, as in unet.py; forward-mode differentiation: only under SDPBackend.MATH.
        qkv = linear(tokens, thirds_first(self.qkv.weight.flatten(1)), thirds_first(cast(Tensor, self.qkv.bias)))
        q, k, v = qkv[:, None].chunk(3, dim=3)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0]
        h = linear(h, self.proj.weight.flatten(1), self.proj.bias)
        return h.transpose(1, 2).reshape(b, c, height, width)


class FourierFeatures(nn.Module):
    """(B,) -> (B, width): sines, then cosines, of 2 pi f c_noise for random frequencies f that stay as they were drawn.

    Checkpoints hold what is trained, so `freqs` is a parameter; its gradient is exactly 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.empty(width // 2))
        nn.init.normal_(self.freqs, std=FOURIER_SCALE)

    def forward(self, c_noise: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        freqs = self.freqs.detach() + 0 * self.freqs
        angles = c_noise.to(freqs.dtype)[:, None] * (2 * math.pi * freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class SongUNet(nn.Module):
    """The network F of a denoiser, for images of one size; its output is 0 at initialization.

    With `fourier` it takes c_noise as Fourier features of twice the width, otherwise by sinusoids; with `residual` the
    encoder takes the picture itself, ever smaller, at each level. `taps` are of the filter between levels.
    `attention_resolutions` are in pixels: all blocks of the encoder there, the last of the decoder; the bottleneck
    always has one. `augment_dim` numbers can say how a picture was augmented. The rest is as for unet.UNet. Raises
    ConfigError, with one sentence, for a shape that cannot be built.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attention_resolutions: Sequence[int],
        fourier: bool,
        residual: bool,
        taps: Sequence[int],
        num_classes: int | None = None,
        augment_dim: int = 0,
        dropout: float = 0.0,
        second_time: bool = False,
        null_label: bool = False,
        told_guidance: bool = False,
        checkpoint_activations: bool = False,
        channels_last: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        sizes = check_levels(image_size, channel_mult, attention_resolutions)
        if model_channels % 2 or model_channels < 4:
            raise ConfigError(f"model_channels {model_channels} must be even, and at least 4: half of them are sines")
        if precision not in DTYPES:
            raise ConfigError(f"precision '{precision}' is not one of {', '.join(DTYPES)}")
        self.image_size, self.num_classes = image_size, num_classes
        self.null_label = null_label and bool(num_classes)
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.model_channels, self.dropout, self.augment_dim = model_channels, dropout, augment_dim
        self.second_time, self.checkpoint_activations, self.precision = second_time, checkpoint_activations, precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        noise, emb = (2 if fourier else 1) * model_channels, 4 * model_channels

        def block(channels_in: int, channels: int, attention: bool, resample: Resample | None = None) -> Block:
            return Block(channels_in, channels, emb, dropout, attention, resample)

        self.map_noise = FourierFeatures(noise) if fourier else None
        self.map_label = Linear(num_classes, noise) if num_classes else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
        if second_time:
            self.next_embed = nn.Sequential(Linear(noise, emb), nn.SiLU(), Linear(emb, emb))
        if told_guidance:
            self.guidance_embed = GuidanceEmbedding(emb)
        self.told_guidance = told_guidance

        enc: dict[str, nn.Module] = {}
        channels, picture, skips = model_channels, in_channels, []  # skips: widths of what the decoder takes
        for level, (size, mult) in enumerate(zip(sizes, channel_mult, strict=True)):
            if level:
                enc[f"{size}x{size}_down"] = block(channels, channels, False, Resample("down", taps))
                if residual:
                    enc[f"{size}x{size}_aux_residual"] = ConvDown(picture, channels, taps)
                    picture = channels
            else:
                enc[f"{size}x{size}_conv"] = Conv2d(in_channels, channels, 3, padding=1)
            skips.append(channels)
            for i in range(num_blocks):
                attended = size in attention_resolutions
                enc[f"{size}x{size}_block{i}"] = block(channels, mult * model_channels, attended)
                channels = mult * model_channels
                skips.append(channels)
        self.enc = nn.ModuleDict(enc)

        dec: dict[str, nn.Module] = {}
        for size, mult in reversed(list(zip(sizes, channel_mult, strict=True))):
            if size == sizes[-1]:
                dec[f"{size}x{size}_in0"] = block(channels, channels, True)
                dec[f"{size}x{size}_in1"] = block(channels, channels, False)
            else:
                dec[f"{size}x{size}_up"] = block(channels, channels, False, Resample("up", taps))
            for i in range(num_blocks + 1):
                attended = i == num_blocks and size in attention_resolutions
                dec[f"{size}x{size}_block{i}"] = block(channels + skips.pop(), mult * model_channels, attended)
                channels = mult * model_channels
        dec[f"{image_size}x{image_size}_aux_norm"] = GroupNorm(channels, EPS)
        dec[f"{image_size}x{image_size}_aux_conv"] = Conv2d(channels, self.out_channels, 3, padding=1)
        self.dec = nn.ModuleDict(dec)
        self._draw()

    def _draw(self) -> None:
        """Weights uniform by Glorot & Bengio (2010), biases 0, and 0 for what ends a branch."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                last = name.endswith(("conv1", "proj", "aux_conv", "next_embed.2", "guidance_embed.2"))
                (nn.init.zeros_ if last else nn.init.xavier_uniform_)(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _body(self) -> list[nn.Module]:
        return [*self.enc.values(), *list(self.dec.values())[:-2]]  # all but the head

    def lower(self) -> "SongUNet":
        """As unet.UNet's. Returns self."""
        lower_layers(self._body(), DTYPES[self.precision])
        return self

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        c_noise_next: Tensor | None = None,
        augment_labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Images x (B, in_channels, H, W), c_noise (B,) = ln(sigma)/4, labels (B,) int64 iff conditional, c_noise_next
        (B,) iff `second_time`, augment_labels (B, augment_dim), None: not augmented, guidance (B,) with `told_guidance`
        only, None: 1 -> (B, out_channels, H, W).

        Raises DataError, with one sentence, for inputs that do not fit the network.
        """
        dtype = self.map_layer0.weight.dtype
        shape = (self.in_channels, self.image_size, self.image_size)
        check_inputs(shape, self.num_classes, self.null_label, self.second_time, x, labels, c_noise_next)
        check_guidance(self.told_guidance, guidance)
        if augment_labels is not None and augment_labels.shape != (len(x), self.augment_dim):
            raise DataError(
                f"augmentation labels of shape {tuple(augment_labels.shape)} were given to a network with "
                f"augment_dim {self.augment_dim} and {len(x)} images"
            )
        with torch.autocast(x.device.type, enabled=False):  # the caller's autocast must not reach the embedding
            emb = self._embedding(c_noise, labels, augment_labels, dtype)
            if c_noise_next is not None:
                emb = emb + self.next_embed(self._features(c_noise_next, dtype))
            if self.told_guidance:
                emb = emb + self.guidance_embed(guidance, emb)
            emb = F.silu(emb)
        with torch.autocast(x.device.type, dtype=DTYPES[self.precision], enabled=self.precision != "fp32"):
            h = picture = x.to(dtype, memory_format=self.memory_format)
            skips: list[Tensor] = []
            for layer in self.enc.values():
                if isinstance(layer, ConvDown):
                    h = picture = skips[-1] = (h + layer(picture)) * SKIP_SCALE
                else:
                    h = self._run(layer, h, emb) if isinstance(layer, Block) else layer(h)
                    skips.append(h)
            *layers, norm, conv = self.dec.items()
            for name, layer in layers:
                h = self._run(layer, torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, emb)
        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, conv[1](F.silu(norm[1](h.to(dtype)))).contiguous())

    def _features(self, c_noise: Tensor, dtype: torch.dtype) -> Tensor:
        if self.map_noise is not None:
            return cast(Tensor, self.map_noise(c_noise)).to(dtype)
        return positional_features(c_noise, self.model_channels).to(dtype)

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        emb = self._features(c_noise, dtype)
        if self.map_label is not None and labels is not None:
            classes = self.map_label.in_features
            # the label of no class is a row of zeros, as where EDM leaves labels out: no weight of its own
            one_hot = (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)
            emb = emb + self.map_label(one_hot * math.sqrt(classes))
        if self.map_augment is not None:
            # zeros add nothing, and give the weight a gradient, of 0, where no picture is augmented
            none = emb.new_zeros(len(emb), self.augment_dim)
            emb = emb + self.map_augment(none if augment_labels is None else augment_labels.to(dtype))
        return cast(Tensor, self.map_layer1(F.silu(self.map_layer0(emb))))

    def _run(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # The random state is restored so that the second pass draws the same dropout mask.
            return cast(Tensor, checkpoint(block, h, emb, use_reentrant=False, preserve_rng_state=self.dropout > 0))
        return cast(Tensor, block(h, emb))
