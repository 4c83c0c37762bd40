"""Small damages to what people and earlier starts have written: to bytes, to JSON and YAML trees, to arrays. Each is a
function of a random.Random alone.
"""

import copy
import io
import json
import random
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e-300, 1e300,
    float("inf"), float("-inf"), float("nan"), "", " ", "x", "none", "0", "-1", "1e9", "\0", "ä☃", "a" * 5000,
    "../x", "/etc/passwd", "pipe:cat", "s3://", "file:///", "memory://x", "http://", "a::b", "[", "{", "~", "%s", "{}",
    [], {}, [None], [[]], [1, 2, 3], ["x"], {"x": 1}, {"kind": "x"}, [[1, 2], [3]],
)  # fmt: skip


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Some bytes changed, cut, doubled, put in or left out."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = draw.randbytes(draw.choice((1, 4, 100)))
        elif kind == 3:
            del data[at : at + draw.choice((1, 8, 512))]
        elif kind == 4:
            data[at : at + 8] = b"\xff" * 8
        else:
            data[at:at] = data[max(0, at - 512) : at]
    return bytes(data)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree but the whole."""
    found: list[tuple[Any, ...]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def changed(draw: random.Random, tree: Any) -> Any:
    """A copy with some values replaced, left out, renamed, moved or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        found = places(tree)
        if not found:
            return draw.choice(VALUES)
        *path, leaf = draw.choice(found)
        node = tree
        for part in path:
            node = node[part]
        kind = draw.randrange(7)
        if kind <= 2:
            node[leaf] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 3:
            del node[leaf]
        elif kind == 4 and isinstance(node, dict):
            node[draw.choice(("x", "format", "kind", f"{leaf}s", ""))] = node.pop(leaf)
        elif kind == 5 and isinstance(node[leaf], (int, float)) and not isinstance(node[leaf], bool):
            node[leaf] = draw.choice((-node[leaf], node[leaf] * 10**9, node[leaf] + 1, str(node[leaf]), [node[leaf]]))
        else:
            *other, last = draw.choice(found)
            source = tree
            for part in other:
                source = source[part]
            node[leaf] = copy.deepcopy(source[last])
    return draw.choice(VALUES) if draw.random() < 0.02 else tree


def json_of(draw: random.Random, content: bytes, seal: Any = None) -> bytes:
    """A JSON file changed as a tree (sealed anew by `seal`), or as bytes."""
    if draw.random() < 0.25:
        return damaged(draw, content)
    try:
        tree = changed(draw, json.loads(content))
    except ValueError:  # not JSON as a whole
        return damaged(draw, content)
    if seal is not None and isinstance(tree, dict):
        tree.pop("seal", None)
        try:
            return bytes(seal(tree))
        except (TypeError, ValueError):
            pass
    return json.dumps(tree).encode()


def npz_of(draw: random.Random, content: bytes) -> bytes:
    """An npz file with another array in it, or as bytes."""
    if draw.random() < 0.25:
        return damaged(draw, content)
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = draw.choice(list(arrays))
    old = arrays[name]
    numeric = old.dtype.kind in "iuf" and old.size
    new = draw.choice(("kind", "objects", "shape", "empty", "gone", "value", "whole", "text"))
    if new == "kind" and numeric:
        arrays[name] = old.astype(draw.choice(("float32", "float64", "int8", "uint8", "complex64", "bool")))
    elif new == "objects":
        arrays[name] = np.array([{}] * 3, dtype=object)
    elif new == "shape":
        arrays[name] = draw.choice((old.reshape(-1)[:-1], old[None], old.reshape(-1)[:1]))
    elif new == "empty":
        arrays[name] = np.empty(0, old.dtype)
    elif new == "gone":
        del arrays[name]
    elif new == "value" and numeric:
        flat = old.copy().reshape(-1)
        kind = old.dtype.kind
        pool = (float("nan"), float("inf"), -1e300, 0.0) if kind == "f" else (0, 1, 2**31, np.iinfo(old.dtype).max)
        flat[draw.randrange(flat.size)] = draw.choice(pool)
        arrays[name] = flat.reshape(old.shape)
    elif new == "whole" and numeric:
        arrays[name] = -old if old.dtype.kind != "u" else old + 1
    else:
        arrays[name] = np.array(["x"] * 3)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
