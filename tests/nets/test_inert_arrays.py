"""Arrays of numpy in pickles: numbers are read, objects are not, and nothing is run."""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmdist.errors import CheckpointError
from cmdist.nets import inert


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", ["b1", "i1", "u1", "i8", "f2", "f4", "f8"])
def test_arrays_of_numbers_are_read(dtype: str, protocol: int) -> None:
    draw = np.random.default_rng(0).normal(size=(3, 4)) * 3
    values = [
        draw.astype(dtype),
        np.asfortranarray(draw.astype(dtype)),
        np.zeros((0, 2), dtype),
        draw.astype(dtype)[0, 0],
    ]
    found = inert.read(pickle.dumps(values, protocol), "x.pkl")
    for before, after in zip(values, found, strict=True):
        assert np.array_equal(before, after) and getattr(after, "dtype", before.dtype) == before.dtype
    assert type(found[-1]) is type(values[-1].item())


class Reduced:
    """What pickles as it is told."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


def planted_arrays(mark: Path) -> dict[str, Any]:
    make, arguments = np.zeros(3).__reduce__()[:2]
    number, zeros = np.dtype("f8"), np.zeros(3).tobytes()
    bomb = bytes(10_000)
    return {
        "objects": np.array([Reduced(os.system, (f"touch {mark}",)), None], dtype=object),
        "object dtype": Reduced(np.dtype, ("O", False, True)),
        "structure": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        "text": np.array(["a", "b"]),
        "another count": Reduced(make, arguments, (1, (4,), number, False, zeros)),
        "a negative shape": Reduced(make, arguments, (1, (-3,), number, False, zeros)),
        "a list for numbers": Reduced(make, arguments, (1, (3,), number, False, [1, 2, 3])),
        "high byte first": np.zeros(3, ">f8"),
        "numbers again and again": [Reduced(make, arguments, (1, (10_000,), np.dtype("u1"), False, bomb))]
        + [Reduced(make, arguments, (1, (10_000,), np.dtype("u1"), False, bomb)) for _ in range(20)],
    }


@pytest.mark.parametrize("kind", planted_arrays(Path("x")))
def test_arrays_run_nothing_and_take_no_more_than_the_file(tmp_path: Path, kind: str) -> None:
    content = pickle.dumps(planted_arrays(tmp_path / "mark")[kind], 4)
    with pytest.raises(CheckpointError, match=r"x.pkl cannot be read: it is damaged, .*; nothing of it was run"):
        inert.read(content, "x.pkl")
    assert not (tmp_path / "mark").exists()


def test_many_sides_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their product would: it grows with each, and 80,000 in 160 kB took a quarter of a minute."""
    make, arguments = np.zeros(3).__reduce__()[:2]
    state = (1, (2**62,) * 1000, np.dtype("u1"), False, b"")
    counted: list[int] = []
    product = math.prod
    monkeypatch.setattr(inert.math, "prod", lambda shape: counted.append(len(shape)) or product(shape))
    with pytest.raises(CheckpointError, match=r"x.pkl cannot be read"):
        inert.read(pickle.dumps(Reduced(make, arguments, state), 4), "x.pkl")
    assert not counted
