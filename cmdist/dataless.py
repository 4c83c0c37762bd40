"""Tensors without data: sizes, strides and dtypes, which go a CPU's way through torch (autocast, attention's kernel).

For what is only counted. Torch's own FakeTensorMode gives the same in twice the time, and is made for compilers.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_META, _CPU = torch.device("meta"), torch.device("cpu")
_ZERO = torch._C.DispatchKeySet(torch._C.DispatchKey.ZeroTensor)
_aten = torch.ops.aten
_ZEROS = _aten._efficientzerotensor.default
_SLOW = (  # torch works out their shapes in Python; they give fresh, dense tensors
    *(_aten.native_group_norm.default, _aten.native_group_norm_backward.default, _aten.addmm.default),
)


class Shape(Tensor):
    """A tensor that says that it is on the CPU; `meta` is what operations are done with."""

    meta: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, meta: Tensor, zero: bool = False) -> "Shape":
        """The same sizes, strides and dtype; `zero`: as torch marks tangents that are zero, to leave out work."""
        keys: dict[str, Any] = {"_extra_dispatch_keys": _ZERO} if zero else {}
        made = Tensor._make_wrapper_subclass(
            cls, meta.size(), meta.stride(), meta.storage_offset(), dtype=meta.dtype, device=_CPU, **keys
        )
        made.meta = meta
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shape":
        if id(self) not in memo:
            made, needed = self.detach().clone(), self.requires_grad
            parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(made, needed) if parameter else made.requires_grad_(needed)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What is done outside of the mode. Raises RuntimeError."""
        raise RuntimeError(f"{func}: its tensor has no data")


class Dataless(TorchDispatchMode):
    """Inside, what is made has no data, and tensors from outside lose theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation on the meta device."""
        kwargs = kwargs or {}
        found = tensors((args, kwargs))
        devices = {kwargs["device"]} if kwargs.get("device") else {tensor.device for tensor in found}
        given = {id(tensor.meta): tensor for tensor in found if isinstance(tensor, Shape)}
        zero = func is _ZEROS or (func.is_view and isinstance(args[0], Tensor) and args[0]._is_zerotensor())
        if torch.Tag.inplace_view in func.tags:
            raise RuntimeError(f"{func} would change what a tensor without data is")
        args, kwargs = _bare(args), _bare(kwargs)
        if "device" in kwargs or _makes(func):
            kwargs["device"] = _META
        if func is _ZEROS and devices != {_META}:
            func = _aten.empty.memory_format
        out = self._repeated(func, args, kwargs) if func in _SLOW else func(*args, **kwargs)
        if func is _aten.convolution.default and any(map(_channels_last, args[:2])):  # which meta tensors leave open
            out = out.contiguous(memory_format=torch.channels_last)
        return out if devices == {_META} else _shaped(out, given, zero)

    def _repeated(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What is given by name, addmm's factors, changes no shape."""
        key = func, *map(_key, args)
        if key not in self._known:
            self._known[key] = func(*args, **kwargs)
        return tree_map_only(Tensor, torch.empty_like, self._known[key])

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and looking whether it is takes longer than most operations."""
        return False


def meta(tensor: Tensor) -> Tensor:
    """What stands for a tensor without data; any other is itself. Raises RuntimeError if `tensor.data` was replaced."""
    if not isinstance(tensor, Shape):
        return tensor
    if tensor.dtype != tensor.meta.dtype or tensor.size() != tensor.meta.size():
        raise RuntimeError("the data of a tensor without data was replaced")
    return tensor.meta


def tensors(value: Any) -> list[Tensor]:
    """All tensors among an operation's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for each in value for tensor in tensors(each)]


@functools.cache
def _makes(func: Any) -> bool:
    """Whether an operation makes a tensor of none, on a device that it may be told."""
    given = func._schema.arguments
    return any(arg.name == "device" for arg in given) and not any("Tensor" in str(arg.type) for arg in given)


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.size(), value.stride(), value.dtype
    return tuple(value) if isinstance(value, list) else value


def _channels_last(tensor: Tensor) -> bool:
    return suggest_memory_format(tensor) == torch.channels_last


def _bare(value: Any) -> Any:
    if isinstance(value, Tensor):
        return meta(value).to(_META)
    if isinstance(value, list | tuple):
        return type(value)(map(_bare, value))
    return {name: _bare(each) for name, each in value.items()} if isinstance(value, dict) else value


def _shaped(value: Any, given: dict[int, Shape], zero: bool) -> Any:
    if isinstance(value, Tensor):
        return given[id(value)] if id(value) in given else Shape(value, zero)
    if isinstance(value, list | tuple):
        return type(value)(_shaped(each, given, zero) for each in value)
    return value
