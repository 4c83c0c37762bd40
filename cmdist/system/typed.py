"""Files that earlier starts or other people have written, read by their shape: a `Document` is a kind of JSON file,
`arrays_of` reads npz files. What is wrong is said with the file, the key and what to do.
"""

import io
import json
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cmdist.errors import CmdistError, DataError

LARGEST = 2**35  # bytes of the arrays of a file
Tree = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


class Shape(BaseModel):
    """What is read from a file: nothing is converted, and more keys are welcome."""

    model_config = ConfigDict(strict=True, extra="allow")


def _plain(name: str) -> str:
    if not name.strip(".") or set(name) & set("/\\:\0"):
        raise ValueError("a plain file name")
    return name


PlainName = Annotated[str, AfterValidator(_plain)]  # of a file in the folder itself


@dataclass(frozen=True)
class Document:
    """A kind of JSON file: what is read from it, the error that it raises, and what to do."""

    shape: type[Shape]
    error: type[CmdistError] = DataError
    remedy: str = ""

    def read(self, content: bytes | str, where: str) -> Tree:
        """The tree in a file's content. Raises `error`, naming `where`."""
        return self.check(self.tree(content, where), where)

    def tree(self, content: bytes | str, where: str) -> Tree:
        """The same, of any shape."""
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self.error(self._said(where, f"it is no JSON ({short(error)})")) from error
        if not isinstance(tree, dict):
            raise self.error(self._said(where, "keys and values are needed"))
        return tree

    def check(self, tree: Any, where: str) -> Tree:
        """`tree`, as it is. Raises `error` if it has another shape."""
        try:
            self.shape.model_validate(tree)
        except ValidationError as error:
            raise self.error(self._said(where, problem(error))) from error
        return tree  # type: ignore[no-any-return]

    def _said(self, where: str, what: str) -> str:
        return f"{where} is damaged: {what}" + (f"; {self.remedy}" if self.remedy else "")


def problem(error: ValidationError) -> str:
    """The first thing that is wrong, in words: the key, and what is needed there."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{key} is missing"
    needed = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    needed = needed.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key or 'it'} is {shown(first['input'])}, and {needed} is needed"


def shown(value: Any, most: int = 60) -> str:
    """A value as it stands in a file, cut to fit into a sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def short(error: BaseException, most: int = 200) -> str:
    """What an error says, on one line, cut to fit into a sentence; its type, if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def arrays_of(content: bytes, where: str, error: type[CmdistError] = DataError, remedy: str = "") -> Arrays:
    """The arrays of an npz file by name; nothing of it is executed. Raises `error`, naming `where`."""
    try:
        file = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise ValueError("it is a single array")
        with file:
            assert file.zip is not None
            size = sum(info.file_size for info in file.zip.infolist())
            if size > LARGEST:
                raise ValueError(f"it expands to {size} bytes, {LARGEST} are allowed")
            return {name: file[name] for name in file.files}
    except Exception as problem:  # of what is damaged numpy and zipfile say almost anything
        said = short(problem)
        if "allow_pickle" in said:
            said = "it is no npz file, or holds objects and not numbers, which are not read"
        raise error(f"{where} is damaged: {said}" + (f"; {remedy}" if remedy else "")) from problem


def array(arrays: Arrays, name: str, kinds: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """One of the arrays, if numpy's kind of its numbers is among `kinds`, e.g. 'iu', and it has the shape (None: any).

    Raises ValueError with the rest of a sentence.
    """
    if name not in arrays:
        raise ValueError(f"{name} is missing; it has {', '.join(arrays) or 'nothing'}")
    value = arrays[name]
    if value.dtype.kind not in kinds:
        raise ValueError(f"{name} holds {value.dtype}, and {_KINDS[kinds]} are needed")
    fits = len(value.shape) == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
    if not fits:
        needed = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has the shape {list(value.shape)}, and [{needed}] is needed")
    return value


_KINDS = {"i": "signed whole numbers", "u": "unsigned whole numbers", "iu": "whole numbers", "f": "fractions"}
_KINDS |= {"S": "byte strings", "U": "a text", "iuf": "numbers"}
