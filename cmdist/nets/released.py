"""Weights from one file: the released consistency models (.pt), guided-diffusion's layout, plain safetensors. No code
in it is run.

The released files are flat dictionaries of tensors with the names of unet.py. Their `edm_*` are denoisers with EDM's
scalings, their `cd_*` and `ct_*` consistency functions with those of the boundary condition; nothing inside a file
tells which.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from cmdist.errors import CheckpointError, CmdistError, ConfigError
from cmdist.system import storage

QkvOrder = Literal[
    "legacy", "new"
]  # guided-diffusion's words: (heads, 3, head_channels), its default, or (3, heads, head_channels)
ENDINGS = (".pt", ".pth", ".safetensors")


def is_file(url: str) -> bool:
    """Whether a URL names a file of weights rather than the folder of a run."""
    return url.endswith(ENDINGS)


def check_kind(url: str, denoising: bool) -> None:
    """Raise ConfigError if a file's name says that it is of the other kind:
    `edm_*` a denoiser, `cd_*` and `ct_*` consistency models.
    """
    name = url.rpartition("/")[2]
    if denoising and name.startswith(("cd_", "ct_")):
        raise ConfigError(
            f"{url} is a consistency model by its name, and a denoiser is needed here, e.g. edm_imagenet64_ema.pt"
        )
    if not denoising and name.startswith("edm_"):
        raise ConfigError(
            f"{url} is a denoiser by its name, and a consistency model is needed here, e.g. cd_imagenet64_lpips.pt"
        )


def read(url: str, head_channels: int, qkv_order: QkvOrder | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, fp32, in the layout of unet.py.

    Attention weights of guided-diffusion are 3-D, and their order, which no shape shows, must be given: `qkv_order`.
    Raises CheckpointError for a file that is missing, damaged, not a flat dictionary of finite floating-point tensors,
    or holds anything that would be executed.
    """
    weights = _plain(url, _found(url))
    if strange := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{url}: {strange[0]} has values that are not finite")
    return _in_our_order(url, weights, head_channels, qkv_order)


def shapes(url: str, head_channels: int) -> dict[str, Tensor] | None:
    """The same tensors without their numbers, on the device "meta"; None for a remote file, of which all would have to
    be read. Raises as `read`.
    """
    if storage.local_path(url) is None:
        return None
    weights = {name: value.to("meta") for name, value in _plain(url, _found(url, numbers=False)).items()}
    return _in_our_order(url, weights, head_channels, None)


def _found(url: str, numbers: bool = True) -> Any:
    """What is in a file; without `numbers` they are mapped, and not compared with their checksums."""
    try:
        return _safetensors(url) if url.endswith(".safetensors") else _torch(url, numbers)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {url}") from None
    except CmdistError:
        raise
    except Exception as error:  # of what is damaged torch says almost anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error).upper():
            what = "holds more than tensors and is refused, nothing of it was run; a flat state_dict is needed"
        elif isinstance(error, MemoryError) or "allocate memory" in str(error):
            what = "cannot be read: there is not enough memory for it"
        elif isinstance(error, OSError) and error.strerror:
            what = f"cannot be read: {error.strerror}"
        else:
            what = (
                "cannot be read: it is damaged, holds more than tensors (nothing of it was run), or is "
                "no file of weights; "
                "a flat state_dict (.pt, .pth) or a .safetensors file is needed"
            )
        raise CheckpointError(f"{url} {what}") from error


def _plain(url: str, content: Any) -> dict[str, Tensor]:
    """The tensors, in fp32. Raises CheckpointError for what is no flat dictionary of floating-point tensors."""
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        inside = (
            ", ".join(map(str, list(content)[:5]))
            if isinstance(content, Mapping) and content
            else type(content).__name__
        )
        raise CheckpointError(
            f"{url} is not a flat dictionary of tensors, it holds: {inside}; save the state_dict inside it by itself"
        )
    for name, value in content.items():
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(
                f"{url}: {name} is a tensor of {value.dtype}, {value.layout}, {value.device}; plain floating-point "
                "ones are read"
            )
    return {str(name): value.float() for name, value in content.items()}


def _in_our_order(
    url: str, weights: Mapping[str, Tensor], head_channels: int, qkv_order: QkvOrder | None
) -> dict[str, Tensor]:
    flat = any(name.endswith(".qkv.weight") and value.dim() == 3 for name, value in weights.items())
    if flat and qkv_order is None:
        raise ConfigError(
            f"{url} has guided-diffusion's attention, whose order cannot be seen: "
            "pipelines/export.py with --qkv-order legacy "
            "(its default) or new (use_new_attention_order=True) turns it into a file that can be used here"
        )
    if qkv_order and not flat:
        raise ConfigError(
            f"{url}: a qkv order is for guided-diffusion's files with 3-D attention weights; this one's order is known"
        )
    return {name: _attention(name, value, head_channels, qkv_order == "legacy") for name, value in weights.items()}


def load(net: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Give `net` the weights. Raises CheckpointError as `check` does."""
    check(net, weights, where)
    net.load_state_dict(weights)


def check(net: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError with the first differences, if names and shapes of the weights are not those of `net`."""
    own = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    theirs = {name: tuple(p.shape) for name, p in weights.items()}
    wrong = [name for name in [*own, *(theirs.keys() - own.keys())] if own.get(name) != theirs.get(name)]
    if wrong:
        first = ", ".join(
            f"{name} is {_shape(theirs.get(name))} there and {_shape(own.get(name))} here" for name in wrong[:3]
        )
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{where} has another architecture: {first}{more}; network.* must be equal")


def _torch(url: str, compare: bool) -> Any:
    path = storage.local_path(url)
    file: Any = path or io.BytesIO(storage.read(url))
    zipped = zipfile.is_zipfile(file)  # files from before torch 1.6 are not
    if zipped and compare:
        with zipfile.ZipFile(file) as archive:
            _compare_checksums(url, archive)
    if path is None:
        file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped and path is not None)


def _compare_checksums(url: str, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError for a wrong one. torch does not compare them: it takes a flipped bit for a weight.
    The file is read once.

    A file without any right checksum was saved without them (torch.serialization.set_crc32_options).
    """
    wrong = []
    for info in archive.infolist():
        try:
            with archive.open(info) as member:
                while member.read(2**22):
                    pass
        except zipfile.BadZipFile:
            wrong.append(info.filename)
    if wrong and len(wrong) < len(archive.infolist()):
        raise CheckpointError(f"{url} is damaged: {wrong[0]} in it does not have its checksum; fetch it again")


def _safetensors(url: str) -> dict[str, Tensor]:
    path = storage.local_path(url)
    return safetensors.torch.load_file(path) if path else safetensors.torch.load(storage.read(url))


def _attention(name: str, value: Tensor, head_channels: int, legacy: bool) -> Tensor:
    """guided-diffusion's weights of a 1x1 convolution over places, (out, in, 1), as a 2-D one,
    and its qkv in the order (3, heads, ...).
    """
    if legacy and name.endswith((".qkv.weight", ".qkv.bias")):
        if len(value) % (3 * head_channels):
            raise ConfigError(
                f"{name} has {len(value)} rows, which are not heads of 3 x "
                f"{head_channels}: network.head_channels is another"
            )
        value = value.unflatten(0, (-1, 3, head_channels)).transpose(0, 1).flatten(0, 2)
    return value[..., None] if name.endswith((".qkv.weight", ".proj_out.weight")) and value.dim() == 3 else value


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
