"""A stand-in for how EDM's objects pickle themselves, in the published layout: class, source code and state."""

import pickle
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MODULE = "torch_utils.persistence"


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("code of a file was run")


def install() -> None:
    """The module by whose name the files call that function."""
    module = sys.modules.setdefault(MODULE, ModuleType(MODULE))
    sys.modules.setdefault("torch_utils", ModuleType("torch_utils"))
    _reconstruct_persistent_obj.__module__ = MODULE
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]


class Persistent(nn.Module):
    """An object of class `name` with attributes."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__()
        self.__dict__["of"] = name
        self.__dict__.update(attributes)

    def __reduce__(self) -> Any:
        state = {key: value for key, value in self.__dict__.items() if key != "of"}
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit('run')", "class_name": self.of}
        return _reconstruct_persistent_obj, ({**meta, "state": state},)


def network(kind: str, tensors: dict[str, Tensor]) -> Persistent:
    """A network of those names; `enc` and `dec` are plain dictionaries of modules, all else is persistent."""
    top = Persistent(kind)
    for name, value in tensors.items():
        *path, leaf = name.split(".")
        module: nn.Module = top
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else Persistent("Layer"))
            module = module._modules[part]  # type: ignore[assignment]
        if leaf == "resample_filter":
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value))
    return top


def file(kind: str, tensors: dict[str, Tensor], wrapper: str = "EDMPrecond", protocol: int = 4, **more: Any) -> bytes:
    """A published file."""
    install()
    attributes = {"img_resolution": 16, "img_channels": 3, "label_dim": 5, "sigma_min": 0, "sigma_max": float("inf")}
    ema = Persistent(wrapper, **attributes, sigma_data=0.5, use_fp16=True)
    ema.add_module("model", network(kind, tensors))
    content = {"ema": ema, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), "augment_pipe": None}
    return pickle.dumps({**content, "dataset_kwargs": {"path": "x", "use_labels": True}, **more}, protocol)


def weights(archive: Any) -> dict[str, Tensor]:
    """Those of an .npz of names with w/model. before them."""
    prefix = "w/model."
    return {name[len(prefix) :]: torch.from_numpy(archive[name]) for name in archive.files if name.startswith(prefix)}
