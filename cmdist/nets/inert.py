"""Pickles of networks, read without running anything of them.

EDM's files are pickles of objects that carry their own source code. Here tensors, arrays of numbers, dictionaries and
lists become what they are; every class and function that a file names becomes an inert record of its name, arguments
and state.
"""

import collections
import io
import math
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmdist.errors import CheckpointError

LEGACY = b"\x80"  # how a nested file of torch begins that was saved as a plain pickle
# Operations that bring in objects from elsewhere, or that take memory before what is to fill it was read.
_REFUSED = frozenset(
    "PERSID BINPERSID EXT1 EXT2 EXT4 INST OBJ DICT FROZENSET BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER".split()  # noqa: SIM905
)


class Record:
    """A class or function of a file, called; `state` is what its object was given."""

    name = ""

    def __new__(cls, *arguments: Any, **named: Any) -> "Record":
        """With whatever the file gives."""
        record = object.__new__(cls)
        record.__dict__.update(arguments=arguments, state={}, items={})
        return record

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Nothing happens."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"][key] = value

    def append(self, value: Any) -> None:
        """An item of a list of a class that is not known."""

    def add(self, value: Any) -> None:
        """An item of a set of a class that is not known."""


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Tensor) or not all(type(n) is int for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor without numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    whole = torch.Size(size).numel()
    if min([0, *size, *stride]) < 0 or offset < 0 or (whole and last >= len(storage)) or whole > len(storage):
        raise pickle.UnpicklingError("a tensor beyond its numbers")
    return storage.as_strided(size, stride, offset)


_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


def _storage(content: Any) -> Tensor:
    """Numbers of a nested file of torch: four pickles, the keys as a fifth, then their count and the numbers."""
    if not isinstance(content, bytes) or not content.startswith(LEGACY):
        raise pickle.UnpicklingError("numbers in an unknown form")
    _check(content, parts=5)
    file = io.BytesIO(content)
    *_, (tag, kind, key, _, count, view), keys = [_Reader(file).load() for _ in range(5)]
    dtype = _DTYPES.get(getattr(kind, "name", ""))
    numbers = content[file.tell() + 8 :]
    declared = int.from_bytes(content[file.tell() : file.tell() + 8], "little")
    if tag != "storage" or dtype is None or keys != [key] or view is not None or type(count) is not int:
        raise pickle.UnpicklingError("numbers that are none")
    if declared != count or count * dtype.itemsize != len(numbers):
        raise pickle.UnpicklingError("another count of numbers than stated")
    return torch.frombuffer(bytearray(numbers), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _ordered() -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict()


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("text in another encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 writes none."""
    return b""


_MOST_SIDES = 32  # of an array
_NUMBERS = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())  # noqa: SIM905


def _array(*arguments: Any) -> NDArray[Any]:
    """Empty; its numbers are the state that comes after it."""
    return np.empty(0, np.uint8)


def _dtype(name: Any, *rest: Any) -> np.dtype[Any]:
    if name not in _NUMBERS:
        raise pickle.UnpicklingError("an array of something else than numbers")
    return np.dtype(name)


def _scalar(dtype: Any, content: Any) -> Any:
    """A number of Python."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError("a number that is none")
    return np.frombuffer(content, dtype)[0].item()


KNOWN: dict[tuple[str, str], Any] = {
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]  # the compiled one makes a memo of any size it is told


class _Reader(_InPython):  # type: ignore[misc]
    left = 0  # bytes that arrays may still have: not more than the file, whatever stands in it twice

    def find_class(self, module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        return known if known is not None else type("Record", (Record,), {"name": f"{module}.{name}"})

    def persistent_load(self, saved: Any) -> Any:
        """What stands for the numbers in a nested file; _check lets no other file have one."""
        return saved

    def load_build(self) -> None:
        """Give an object its state; the functions above have none, and a dictionary's would hide its methods."""
        if isinstance(self.stack[-2], collections.OrderedDict):
            self.stack.pop()
            return
        if isinstance(self.stack[-2], np.dtype):
            if self.stack.pop()[1] not in ("<", "=", "|"):
                raise pickle.UnpicklingError("numbers whose first byte is the highest")
            return
        if isinstance(self.stack[-2], np.ndarray):
            self._fill(self.stack[-2], self.stack.pop())
            return
        if not isinstance(self.stack[-2], Record):
            raise pickle.UnpicklingError("a state for what has none")
        super().load_build()

    def _fill(self, array: NDArray[Any], state: Any) -> None:
        """Give an array its numbers."""
        version, shape, dtype, _, content = state
        if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or version != 1:
            raise pickle.UnpicklingError("an array of something else than numbers")
        if len(shape) > _MOST_SIDES:  # the product of many large numbers takes any time
            raise pickle.UnpicklingError("an array of too many sides")
        if math.prod(shape) * dtype.itemsize != len(content) or min((0, *shape)) < 0 or len(content) > self.left:
            raise pickle.UnpicklingError("another count of numbers than stated")
        self.left -= len(content)
        array.__setstate__(state)

    def load_setitem(self) -> None:
        _plain(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _plain(self.stack[::2])
        super().load_setitems()

    def load_additems(self) -> None:
        _plain(self.stack)
        super().load_additems()

    dispatch: ClassVar[dict[int, Any]] = {
        **_InPython.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
    }


def _plain(keys: list[Any]) -> None:
    """Refuse keys other than text and numbers: the hash of nested tuples takes any time, or the whole stack."""
    if not all(isinstance(key, str | bytes | int | float | None) for key in keys):
        raise pickle.UnpicklingError("a key that is no text or number")


def _check(content: bytes, parts: int = 1) -> None:
    """Refuse operations that are not read; `parts` pickles stand one after another, of a nested file if above 1."""
    file = io.BytesIO(content)
    for _ in range(parts):
        for operation, _, _ in pickletools.genops(file):
            if operation.name in _REFUSED and (parts == 1 or operation.name != "BINPERSID"):
                raise pickle.UnpicklingError(f"{operation.name} is not read")


def read(content: bytes, url: str) -> Any:
    """What a pickle holds. Raises CheckpointError, with one sentence, for one that is damaged or of another kind."""
    try:
        _check(content)
        reader = _Reader(io.BytesIO(content))
        reader.left = len(content)
        return reader.load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(
            f"{url} cannot be read: it is damaged, or no pickle of a network; nothing of it was run"
        ) from error
