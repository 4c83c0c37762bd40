"""Files are read by their shape: each wrong one is a sentence that names the file and the key."""

import io
import json
from typing import Any

import numpy as np
import pytest

from cmdist.errors import CheckpointError, Damaged, DataError
from cmdist.system.typed import Document, Shape, array, arrays_of


class Pair(Shape):
    count: int
    names: list[str]


PAIR = Document(Pair, CheckpointError, "bring it back")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is damaged: it is no JSON"),
        (b"\xff\xfe{}", "is damaged: it is no JSON"),
        ("[" * 100_000, "is damaged: it is no JSON"),
        ("[]", "is damaged: keys and values are needed; bring it back"),
        ("{}", "is damaged: count is missing"),
        ('{"count": "1", "names": []}', "is damaged: count is '1', and integer is needed"),
        ('{"count": true, "names": []}', "count is True, and integer is needed"),
        ('{"count": 1, "names": ["a", 2]}', r"names\.1 is 2, and string is needed"),
        ('{"count": 1, "names": {"a": "b"}}', r"names is \{'a': 'b'\}, and list is needed"),
    ],
)
def test_a_document_of_another_shape_is_a_sentence(content: str | bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=f"^x.json {says}" if says.startswith("is") else says) as caught:
        PAIR.read(content, "x.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_document_is_given_as_it_is() -> None:
    tree = {"count": 1, "names": ["a"], "more": [1]}
    assert PAIR.read(json.dumps(tree), "x.json") == tree


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "x.npz is damaged: "),
        (npz(a=np.arange(3))[:-9], "x.npz is damaged: "),
        (npz(a=np.array([{}])), "holds objects and not numbers, which are not read"),
        (b"no file at all", "it is no npz file, or holds objects"),
    ],
)
def test_a_damaged_file_of_arrays_is_a_sentence_without_advice_to_unpickle(content: bytes, says: str) -> None:
    with pytest.raises(Damaged, match=says) as caught:
        arrays_of(content, "x.npz", Damaged)
    assert "allow_pickle" not in str(caught.value)


def test_a_single_array_is_no_file_of_arrays() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    with pytest.raises(DataError, match="x.npz is damaged: it is a single array"):
        arrays_of(buffer.getvalue(), "x.npz")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (np.arange(3.0), "a holds float64, and signed whole numbers are needed"),
        (np.arange(4), r"a has the shape \[4\], and \[3, any\] is needed"),
        (np.array(3), r"a has the shape \[\], and \[3, any\] is needed"),
    ],
)
def test_an_array_of_another_kind_or_shape_is_a_sentence(found: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        array({"a": found}, "a", "i", (3, None))
    with pytest.raises(ValueError, match="b is missing; it has a"):
        array({"a": found}, "b", "i", (3, None))
