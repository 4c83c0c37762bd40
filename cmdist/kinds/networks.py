"""The kinds of network: the keys of each, and how it is made. A new one is a file of nets/ and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from cmdist.errors import ConfigError
from cmdist.nets.group_norm import regroup
from cmdist.nets.songunet import DDPMPP, NCSNPP, SongUNet
from cmdist.nets.unet import Precision, UNet
from cmdist.sections import Positive, PositiveFloat, Section, free, identity


@dataclass(frozen=True)
class Images:
    """What a network is made for: images (channels, size, size) of `classes` classes (0: unlabelled)."""

    channels: int
    size: int
    classes: int


class Adm(Section):
    """The U-Net of ADM (Dhariwal & Nichol 2021), in the terms of the released models."""

    kind: Annotated[Literal["adm"], identity("which network")] = "adm"
    model_channels: Annotated[int, Field(ge=1, le=65536), identity("channels of the first level")]
    channel_mult: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...],
        Field(min_length=1, max_length=30),
        identity("channels of each level, in model_channels"),
    ]
    num_res_blocks: Annotated[int, Field(ge=1, le=100), identity("residual blocks of each level")]
    attention_resolutions: Annotated[
        tuple[Positive, ...], Field(max_length=100), identity("where attention is, in pixels a side")
    ] = ()
    head_channels: Annotated[int, Field(gt=0, le=65536), identity("of an attention head")] = 64
    dropout: Annotated[float, Field(ge=0, lt=1), identity("in the residual blocks")] = 0.0
    scale_shift_norm: Annotated[bool, identity("the embedding scales and shifts normalised features")] = True
    resblock_updown: Annotated[bool, identity("residual blocks change the resolution")] = True
    time_factor: Annotated[PositiveFloat, identity("times c_noise before its sinusoids; the released models' 1000")] = (
        1000.0
    )
    fourier_scale: Annotated[
        PositiveFloat | None,
        identity("of Fourier features of c_noise instead of those sinusoids, e.g. 0.02; null: sinusoids"),
    ] = None
    double_norm: Annotated[
        bool, identity("scale and shift by the embedding are normalised too (sCM), with scale_shift_norm")
    ] = False
    second_time: Annotated[bool, identity("takes a second noise level, for objectives that learn jumps")] = False
    unshuffle: Annotated[
        Literal[1, 2, 4], identity("pixels a side that become channels of one before the first layer, and back at last")
    ] = 1
    null_label: Annotated[
        bool, identity("a vector for no class, for classifier-free guidance; learnt by train.label_dropout")
    ] = False
    told_guidance: Annotated[bool, identity("takes its teacher's scale of guidance (objective.guidance_range)")] = False
    norm_groups: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | Literal["by_width"] | None,
        identity(
            "of each normalization: 32 as in ADM, or by_width: fewer where one would have under 4 channels; null is "
            "by_width, but a narrow network's file, which does not say it, is refused"
        ),
    ] = None
    checkpoint_activations: Annotated[bool, free("computed again in the backward pass: less memory, slower")] = False
    channels_last: Annotated[bool, free("memory format of the activations")] = False


class Song(Section):
    """What DDPM++ and NCSN++ share."""

    kind: Annotated[Literal["ddpmpp", "ncsnpp"], identity("which network")]
    model_channels: Annotated[int, Field(ge=4, le=65536), identity("channels of the first convolution; even")]
    channel_mult: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...],
        Field(min_length=1, max_length=30),
        identity("channels of each level, in model_channels"),
    ]
    num_blocks: Annotated[
        int, Field(ge=1, le=100), identity("residual blocks of each level of the encoder; the decoder has one more")
    ]
    attention_resolutions: Annotated[
        tuple[Positive, ...],
        Field(max_length=100),
        identity("where attention is beside the bottleneck's, in pixels a side"),
    ] = ()
    dropout: Annotated[float, Field(ge=0, lt=1), identity("in the residual blocks")] = 0.0
    augment_dim: Annotated[
        int,
        Field(ge=0, le=1024),
        identity("numbers that say how an image was augmented, 9 in EDM's files (objective.augment)"),
    ] = 0
    second_time: Annotated[bool, identity("takes a second noise level, for objectives that learn jumps")] = False
    null_label: Annotated[
        bool, identity("knows the label of no class, for classifier-free guidance; learnt by train.label_dropout")
    ] = False
    told_guidance: Annotated[bool, identity("takes its teacher's scale of guidance (objective.guidance_range)")] = False
    checkpoint_activations: Annotated[bool, free("computed again in the backward pass: less memory, slower")] = False
    channels_last: Annotated[bool, free("memory format of the activations")] = False


class Ddpmpp(Song):
    """DDPM++ (Song et al. 2021), as in EDM's variance-preserving files: sinusoids of c_noise itself, no time factor."""

    kind: Annotated[Literal["ddpmpp"], identity("which network")] = "ddpmpp"


class Ncsnpp(Song):
    """NCSN++ (Song et al. 2021), as in EDM's variance-exploding files: Fourier features, a residual encoder."""

    kind: Annotated[Literal["ncsnpp"], identity("which network")] = "ncsnpp"


def _adm(keys: Adm, images: Images, precision: Precision) -> nn.Module:
    net = UNet(
        image_size=images.size,
        in_channels=images.channels,
        num_classes=images.classes or None,
        precision=precision,
        **keys.model_dump(exclude={"kind", "norm_groups"}),
    )
    if isinstance(keys.norm_groups, int):
        regroup(net, keys.norm_groups)
    return net


def _song(what: dict[str, Any]) -> Callable[[Song, Images, Precision], nn.Module]:
    def make(keys: Song, images: Images, precision: Precision) -> nn.Module:
        return SongUNet(
            image_size=images.size,
            in_channels=images.channels,
            num_classes=images.classes or None,
            precision=precision,
            **what,
            **keys.model_dump(exclude={"kind"}),
        )

    return make


def _check_size(images: Images, depth: int, unshuffle: int = 1) -> None:
    if images.size % (divisor := unshuffle * 2 ** (depth - 1)):
        with_it = f" and network.unshuffle {unshuffle}" if unshuffle > 1 else ""
        raise ConfigError(
            f"data.image_size ({images.size}) must be divisible by {divisor} "
            f"for network.channel_mult of length {depth}{with_it}"
        )


def _check_song(keys: Song, images: Images) -> None:
    _check_size(images, len(keys.channel_mult))
    if keys.model_channels % 2:
        raise ConfigError(
            f"network.model_channels ({keys.model_channels}) must be even: half of its features are sines"
        )


def _check_adm(keys: Adm, images: Images) -> None:
    _check_size(images, len(keys.channel_mult), keys.unshuffle)
    if keys.double_norm and not keys.scale_shift_norm:
        raise ConfigError("network.double_norm normalises scale and shift, so it needs network.scale_shift_norm: true")


@dataclass(frozen=True)
class Network:
    """A row of the table: its keys, and what makes it of these, of what it is for, and of its precision."""

    section: type[Section]
    make: Callable[[Any, Images, Precision], nn.Module]
    check: Callable[[Any, Images], None]  # raises ConfigError for images that it cannot take
    drawn: str = ""  # those of its weights that stay as they were drawn, if it has any


NETWORKS: dict[str, Network] = {
    "adm": Network(Adm, _adm, _check_adm),
    "ddpmpp": Network(Ddpmpp, _song(DDPMPP), _check_song),
    "ncsnpp": Network(Ncsnpp, _song(NCSNPP), _check_song, drawn="its frequencies"),
}
