"""EDM's published networks (Karras et al. 2022) in the layout of this project."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmdist.errors import CheckpointError
from cmdist.nets.inert import Record

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
HEAD_CHANNELS = 64  # of ADM
LONGEST = 200  # characters of a name before its last part


@dataclass(frozen=True)
class Source:
    """A network of a file: its class there, what its object was given, and its tensors by name, buffers too."""

    kind: str  # SongUNet or DhariwalUNet
    sigma_data: float
    tensors: dict[str, Tensor]


def check_name(url: str) -> None:
    """Raise CheckpointError for the `baseline-*` files, whose scalings are not EDM's."""
    if url.rpartition("/")[2].startswith("baseline-"):
        raise CheckpointError(f"{url}: files named baseline-* have other scalings than EDM's; edm-* files are read")


def source(content: Any, url: str) -> Source:
    """The average of the weights in a file. Raises CheckpointError for what is no EDM network."""
    ema = content.get("ema") if isinstance(content, dict) else None
    name, state = _of(ema)
    if name != "EDMPrecond":
        raise CheckpointError(f"{url} holds {name or 'no network'} where an EDMPrecond named ema is needed")
    net = _dictionary(state.get("_modules")).get("model")
    kind, _ = _of(net)
    if kind not in ("SongUNet", "DhariwalUNet"):
        raise CheckpointError(f"{url} holds {kind or 'no network'} where SongUNet or DhariwalUNet is read")
    sigma_data = state.get("sigma_data")
    if not isinstance(sigma_data, int | float) or not 0 < sigma_data < 1e6:
        raise CheckpointError(f"{url} has a sigma_data that is no number above 0 and below 1e6")
    return Source(kind, float(sigma_data), _tensors(net, url))


def _of(value: Any) -> tuple[str, dict[str, Any]]:
    """Class and state of an object; of one that is none the class is ''."""
    if not isinstance(value, Record):
        return "", {}
    if value.name != PERSISTENT:
        return value.name.rpartition(".")[2], _dictionary(value.__dict__["state"])
    arguments = value.__dict__["arguments"]
    meta = _dictionary(arguments[0]) if arguments else {}
    name = meta.get("class_name")
    return name[:60] if isinstance(name, str) else "", _dictionary(meta.get("state"))


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tensors(top: Any, url: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    waiting, seen = [("", top)], set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            raise CheckpointError(f"{url}: {prefix or 'the network'} is a part of itself, or stands twice")
        if len(prefix) > LONGEST:
            raise CheckpointError(f"{url} has names of more than {LONGEST} characters, as no network of EDM")
        seen.add(id(module))
        _, state = _of(module)
        for group in ("_parameters", "_buffers"):
            for name, value in _dictionary(state.get(group)).items():
                value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                if value is not None and not isinstance(value, Tensor):
                    raise CheckpointError(f"{url}: {prefix}{name} is no tensor")
                if value is not None:
                    tensors[f"{prefix}{name}"] = value
        below = [(f"{prefix}{name}.", part) for name, part in _dictionary(state.get("_modules")).items()]
        waiting += reversed([each for each in below if each[1] is not None])
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors.values()}
    if sum(value.nbytes for value in tensors.values()) > sum(storages.values()):
        raise CheckpointError(f"{url} has more tensors than numbers, as no network of EDM")
    return tensors


# of a block in DhariwalUNet -> ours, in the ResBlock or in the attention after it
_RES = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0"}
_RES |= {"conv1": "out_layers.3", "skip": "skip_connection"}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
_OUTSIDE = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0", "out_conv": "out.2"}


def adm(tensors: dict[str, Tensor], url: str) -> dict[str, Tensor]:
    """Weights of DhariwalUNet in the layout of unet.py, which computes the same with network.time_factor 1.

    qkv's rows are (heads, channels, 3) there and (3, heads, channels) here; an `up` block ends the block before it.
    Raises CheckpointError for a name that is not known.
    """
    weights, places = {}, _places(tensors)
    for name, value in tensors.items():
        *path, part, kind = name.split(".")
        if kind == "resample_filter":
            continue
        if not path and part in _OUTSIDE:
            weights[f"{_OUTSIDE[part]}.{kind}"] = value
        elif name == "map_label.weight":
            weights["label_emb.weight"] = value.T.contiguous()
        elif len(path) == 1 and part.endswith("_conv"):
            weights[f"input_blocks.0.0.{kind}"] = value
        elif len(path) == 2 and ".".join(path) in places and part in _RES | _ATTENTION:
            block, index = places[".".join(path)]
            inside = f"{index}.{_RES[part]}" if part in _RES else f"{index + 1}.{_ATTENTION[part]}"
            weights[f"{block}.{inside}.{kind}"] = _sorted(value, url) if part == "qkv" else value
        else:
            raise CheckpointError(f"{url}: {name} is not a tensor of EDM's ADM")
    return weights


def _places(tensors: dict[str, Tensor]) -> dict[str, tuple[str, int]]:
    """The block of unet.py and the index in it for each block there, in the order of the network."""
    places: dict[str, tuple[str, int]] = {}
    inputs, outputs, attends = 1, 0, {name.rpartition(".qkv")[0] for name in tensors if ".qkv." in name}
    for block in dict.fromkeys(name.rsplit(".", 2)[0] for name in tensors if name.count(".") == 3):
        side, _, name = block.partition(".")
        if side == "enc":
            places[block] = f"input_blocks.{inputs}", 0
            inputs += 1
        elif name.endswith(("_in0", "_in1")):
            places[block] = "middle_block", 0 if name.endswith("_in0") else 2
        elif name.endswith("_up"):
            last = list(places)[-1]
            places[block] = f"output_blocks.{outputs - 1}", 1 + (last in attends)
        else:
            places[block] = f"output_blocks.{outputs}", 0
            outputs += 1
    return places


def _sorted(value: Tensor, url: str) -> Tensor:
    if len(value) % (3 * HEAD_CHANNELS):
        raise CheckpointError(f"{url}: {len(value)} rows of qkv are not heads of 3 x {HEAD_CHANNELS}")
    return value.unflatten(0, (-1, HEAD_CHANNELS, 3)).permute(2, 0, 1, *range(3, value.dim() + 2)).flatten(0, 2)


@dataclass(frozen=True)
class Conversion:
    """Weights for a network of this project, and the keys that configure it, by section."""

    weights: dict[str, Tensor]
    keys: dict[str, dict[str, Any]]


def conversion(content: Any, url: str) -> Conversion:
    """A file's network in this project's layout. Raises CheckpointError as `source` and `adm`, and for shapes that no
    network of its kind has.
    """
    net = source(content, url)
    tensors, song = net.tensors, net.kind == "SongUNet"
    try:
        keys = _sizes(tensors, song)
        kept = {name: value for name, value in tensors.items() if not name.endswith("resample_filter")}
        weights = kept if song else adm(tensors, url)
    except (ArithmeticError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(f"{url} lacks tensors of a {net.kind}; it is damaged, or another network") from error
    return Conversion(weights, keys | {"noise": {"sigma_data": net.sigma_data}})


def _sizes(tensors: dict[str, Tensor], song: bool) -> dict[str, dict[str, Any]]:
    """Of a network, from names and shapes: the levels' blocks are called RxR_blockI, R pixels a side."""
    first = next(name for name in tensors if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", name))
    size = int(first.split(".")[1].partition("x")[0])
    channels = int(tensors[first].shape[0] if song else tensors["map_layer0.weight"].shape[1])
    widths: dict[int, list[int]] = {}
    for name, value in tensors.items():
        if block := re.fullmatch(r"enc\.(\d+)x\d+_block\d+\.conv1\.weight", name):
            widths.setdefault(int(block[1]), []).append(int(value.shape[0]))
    blocks = [re.match(r"enc\.(\d+)x\d+_block\d+\.qkv\.", name) for name in tensors]
    attends = {int(block[1]) for block in blocks if block}
    kind = ("ncsnpp" if "map_noise.freqs" in tensors else "ddpmpp") if song else "adm"
    network: dict[str, Any] = {
        "kind": kind,
        "model_channels": channels,
        "channel_mult": [width[0] // channels for _, width in sorted(widths.items(), reverse=True)],
        "num_blocks" if song else "num_res_blocks": len(widths[size]),
        "attention_resolutions": sorted(attends, reverse=True),
    }
    if not song:
        network |= {"head_channels": HEAD_CHANNELS, "time_factor": 1.0, "norm_groups": "by_width"}
    elif "map_augment.weight" in tensors:
        network["augment_dim"] = int(tensors["map_augment.weight"].shape[1])
    classes = int(tensors["map_label.weight"].shape[1]) if "map_label.weight" in tensors else 0
    return {
        "data": {"image_size": size, "channels": int(tensors[first].shape[1]), "classes": classes},
        "network": network,
    }
