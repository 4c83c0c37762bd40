"""The U-Net in the words of the diffusers library:
its UNet2DModel's configuration and names of weights, for ConsistencyModelPipeline.

Nothing of diffusers is imported: its folders are JSON and safetensors. Where its network cannot be ours, a ConfigError
says why.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cmdist.errors import ConfigError
from cmdist.nets.group_norm import GroupNorm
from cmdist.nets.unet import Attention, Block, ResBlock, UNet

VERSION = "0.42.1"  # the diffusers that the tests load these folders with

_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_config(net: UNet, channel_mult: Sequence[int], num_res_blocks: int) -> dict[str, Any]:
    """The config.json of a UNet2DModel that computes what `net` does. Raises ConfigError where there is none."""
    blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
    if net.time_factor != 1000.0 or net.fourier_scale is not None or blocks[0].double_norm:
        raise ConfigError(
            "diffusers knows noise levels as the released models do: network.time_factor 1000, fourier_scale null and "
            "double_norm false; --format safetensors takes any"
        )
    for key in "null_label", "told_guidance":
        if getattr(net, key):
            raise ConfigError(f"diffusers has no network.{key}; --format safetensors takes it")
    if net.unshuffle != 1:
        raise ConfigError(f"diffusers has no network.unshuffle {net.unshuffle}; --format safetensors takes it")
    if len(channel_mult) > 1 and not any(block.resample for block in blocks):
        raise ConfigError(
            "export to diffusers needs network.resblock_updown true, as in the released "
            "models; --format safetensors takes any"
        )
    if channel_mult[0] != 1:
        raise ConfigError(
            "diffusers takes the width of the time embedding from the first level, so network.channel_mult must begin "
            "with 1, not "
            f"{channel_mult[0]}; --format safetensors takes any"
        )
    if groups := sorted({m.num_groups for m in net.modules() if isinstance(m, GroupNorm)} - {32}):
        raise ConfigError(
            f"diffusers has 32 groups in every normalization, and this network has also {groups}, for "
            "its blocks are narrow; "
            "network.model_channels must be 128 or more and divisible by 32, or take --format safetensors"
        )
    depth, level = len(channel_mult), num_res_blocks + 1
    attended = [any(isinstance(m, Attention) for m in net.input_blocks[1 + i * level].modules()) for i in range(depth)]
    head_channels = next(m.qkv.in_channels // m.heads for m in net.modules() if isinstance(m, Attention))
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": net.image_size,
        "in_channels": net.in_channels,
        "out_channels": net.out_channels,
        "time_embedding_type": "positional",
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attended],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attended)],
        "block_out_channels": [net.model_channels * mult for mult in channel_mult],
        "layers_per_block": num_res_blocks,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "act_fn": "silu",
        "attention_head_dim": head_channels,
        "norm_num_groups": 32,
        # else the middle block's attention has no normalization where embeddings scale and shift
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if blocks[0].scale_shift else "default",
        "add_attention": True,
        "num_class_embeds": net.num_classes,
    }


def scheduler_config(
    n_timesteps: int, sigma_min: float, sigma_max: float, sigma_data: float, rho: float
) -> dict[str, Any]:
    """The config.json of a CMStochasticIterativeScheduler on the Karras grid of n_timesteps noise levels."""
    return {
        "_class_name": "CMStochasticIterativeScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": n_timesteps,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "sigma_data": sigma_data,
        "rho": rho,
        "s_noise": 1.0,
        "clip_denoised": True,
    }


MODEL_INDEX = {
    "_class_name": "ConsistencyModelPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def weights(net: UNet, ours: Mapping[str, Tensor], num_res_blocks: int) -> dict[str, Tensor]:
    """The weights `ours` of `net` under the names of a UNet2DModel; attention's qkv is cut into three linear layers."""
    names = _ENDS | dict(_layers(net, num_res_blocks))
    state: dict[str, Tensor] = {}
    for name, value in ours.items():
        layer, _, kind = name.rpartition(".")  # kind: weight or bias
        owner = next(o for o in itertools.accumulate(layer.split("."), "{}.{}".format) if o in names)
        inner = layer.removeprefix(owner).removeprefix(".")
        if not inner:
            state[f"{names[owner]}.{kind}"] = value
        elif inner == "norm":
            state[f"{names[owner]}.group_norm.{kind}"] = value
        elif inner == "proj_out":
            state[f"{names[owner]}.to_out.0.{kind}"] = _linear(value)
        elif inner == "qkv":
            for part, piece in zip("qkv", _linear(value).chunk(3), strict=True):
                state[f"{names[owner]}.to_{part}.{kind}"] = piece
        else:
            state[f"{names[owner]}.{_RES[inner]}.{kind}"] = value
    return {name: value.contiguous() for name, value in state.items()}


def _layers(net: UNet, num_res_blocks: int) -> Iterator[tuple[str, str]]:
    """(name of a residual or attention block, its name in diffusers)."""
    # blocks of a level: on the way down the last changes the size, on the way up it is one more
    level = num_res_blocks + 1
    for i, block in enumerate(net.input_blocks):
        if i:
            where, place = divmod(i - 1, level)
            yield from _block(block, f"input_blocks.{i}", f"down_blocks.{where}", place, "downsamplers")
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    for i, block in enumerate(net.output_blocks):
        where, place = divmod(i, level)
        yield from _block(block, f"output_blocks.{i}", f"up_blocks.{where}", place, "upsamplers")


def _block(block: torch.nn.Module, ours: str, theirs: str, place: int, resamplers: str) -> Iterator[tuple[str, str]]:
    assert isinstance(block, Block)
    for j, layer in enumerate(block):
        if isinstance(layer, Attention):
            yield f"{ours}.{j}", f"{theirs}.attentions.{place}"
        elif isinstance(layer, ResBlock):
            yield f"{ours}.{j}", f"{theirs}.{resamplers}.0" if layer.resample else f"{theirs}.resnets.{place}"


def _linear(value: Tensor) -> Tensor:
    return value.flatten(1) if value.dim() > 1 else value
