"""Pickles of networks, read without running anything of them.

EDM's files are pickles of objects that carry their own source code. Here tensors, dictionaries and lists become what
they are; every class and function that a file names becomes an inert record of its name, arguments and state.
"""

import collections
import io
import pickle
import pickletools
from typing import Any, ClassVar

import torch
from torch import Tensor

from cmdist.errors import CheckpointError

LEGACY = b"\x80"  # how a nested file of torch begins that was saved as a plain pickle
# Operations that bring in objects from elsewhere, or that take memory before what is to fill it was read.
_REFUSED = frozenset(
    "PERSID BINPERSID EXT1 EXT2 EXT4 INST OBJ BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER".split()  # noqa: SIM905
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
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    whole = torch.Size(size).numel()
    if min([0, *size, *stride]) < 0 or offset < 0 or (whole and last >= len(storage)) or whole > len(storage):
        raise pickle.UnpicklingError("a tensor beyond its numbers")
    return storage.as_strided(size, stride, offset)


def _storage(content: Any) -> Tensor:
    if not isinstance(content, bytes) or not content.startswith(LEGACY):
        raise pickle.UnpicklingError("numbers in an unknown form")
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(found, torch.storage.TypedStorage | torch.UntypedStorage):
        raise pickle.UnpicklingError("numbers that are none")
    dtype = found.dtype if isinstance(found, torch.storage.TypedStorage) else torch.uint8
    return torch.empty(0, dtype=dtype).set_(found)  # type: ignore[call-overload, no-any-return]


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("text in another encoding")
    return text.encode("latin1")


KNOWN: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]  # the compiled one makes a memo of any size it is told


class _Reader(_InPython):  # type: ignore[misc]
    def find_class(self, module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        return known if known is not None else type("Record", (Record,), {"name": f"{module}.{name}"})

    def load_build(self) -> None:
        """Give an object its state; the functions above have none, and must not get attributes of a file."""
        if not isinstance(self.stack[-2], Record | collections.OrderedDict):
            raise pickle.UnpicklingError("a state for what has none")
        super().load_build()

    dispatch: ClassVar[dict[int, Any]] = {**_InPython.dispatch, pickle.BUILD[0]: load_build}


def _check(content: bytes) -> None:
    for operation, _, _ in pickletools.genops(content):
        if operation.name in _REFUSED:
            raise pickle.UnpicklingError(f"{operation.name} is not read")


def read(content: bytes, url: str) -> Any:
    """What a pickle holds. Raises CheckpointError, with one sentence, for one that is damaged or of another kind."""
    try:
        _check(content)
        return _Reader(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(
            f"{url} cannot be read: it is damaged, or no pickle of a network; nothing of it was run"
        ) from error
