"""Checkpoints: where they lie, how they are found, checked and read.

    RUN/checkpoints/step-0000010000/
        slices-00000-of-00002.safetensors   master, exp_avg, exp_avg_sq and target, each as one flat fp32 slice of the
                                            canonical vector (layout.py); the slice's start is in the file's metadata
        ema-0.9999.safetensors              an average, whole, by parameter name, tensors in the vector's order
        state.json                          the step and all that is not a tensor
        COMMIT                              sizes and checksums of the others, written last: no COMMIT, no checkpoint

Nothing is pickled. Any number of ranks reads any slice by byte range.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from cmdist import storage
from cmdist.errors import CheckpointError, LookupFailed
from cmdist.train.layout import Layout

FORMAT = 1
_FOLDER = re.compile(r"step-(\d{10})")


def folder(run_url: str, step: int) -> str:
    """The URL of a step's checkpoint."""
    return storage.join(run_url, "checkpoints", f"step-{step:010d}")


def ema_file(decay: float) -> str:
    """The file name of an average."""
    return f"ema-{decay!r}.safetensors"


def checksum(parts: Sequence[bytes | memoryview]) -> str:
    """xxh3 (128 bits) of the concatenated parts, in hexadecimal."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def pack(
    tensors: Sequence[tuple[str, tuple[int, ...]]], values: dict[str, Tensor] | Tensor, metadata: dict[str, str]
) -> list[bytes | memoryview]:
    """A safetensors file of fp32 tensors (name, shape) in the order given, from CPU memory, without copying it.

    `values` holds a vector for each name, or one vector for all.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, shape in tensors:
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    vectors = [values] if isinstance(values, Tensor) else [values[name] for name, _ in tensors]
    return [len(text).to_bytes(8, "little") + text, *(v.contiguous().numpy().data.cast("B") for v in vectors if v.numel())]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. `commit` lists its files; reading is by byte range, and nothing of it is executed."""

    url: str
    step: int
    commit: dict[str, Any]

    @cached_property
    def state(self) -> dict[str, Any]:
        """state.json, its checksum verified."""
        return json.loads(self.read_file("state.json"))  # type: ignore[no-any-return]

    @cached_property
    def layout(self) -> Layout:
        """The canonical vector that this checkpoint was cut from."""
        return Layout.make((name, shape) for name, shape in self.state["layout"])

    def read_file(self, name: str) -> bytes:
        """A whole file, verified. Raises CheckpointError naming it if it is missing or not what was committed."""
        entry = self.commit["files"].get(name)
        if entry is None:
            raise CheckpointError(f"checkpoint {self.url} holds no {name}; it holds {', '.join(sorted(self.commit['files']))}")
        try:
            data = storage.read(storage.join(self.url, name))
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {self.url} is damaged: {name} is missing") from None
        if len(data) != entry["size"] or checksum([data]) != entry["xxh3"]:
            raise CheckpointError(
                f"checkpoint {self.url} is damaged: {name} has {len(data)} bytes and is not what was committed ({entry['size']} bytes)"
            )
        return data

    def verify(self, rank: int = 0, world: int = 1) -> None:
        """Check this rank's share of the files against COMMIT; the ranks together check all. Raises CheckpointError."""
        for name in sorted(self.commit["files"])[rank::world]:
            self.read_file(name)

    def read_state(self, kind: str, start: int, stop: int) -> Tensor:
        """The numbers [start, stop) of a vector (master, exp_avg, exp_avg_sq, target), fp32, read from the slices that hold them."""
        parts = []
        for entry in self.state["slices"]:
            low, high = max(start, entry["start"]), min(stop, entry["stop"])
            if low < high:
                parts.append(self._range(entry["file"], kind, low - entry["start"], high - entry["start"]))
        values = torch.cat(parts) if parts else torch.empty(0)
        if values.numel() != stop - start:
            raise CheckpointError(f"checkpoint {self.url} holds {values.numel()} of the {stop - start} numbers of '{kind}' from {start} on")
        return values

    def read_ema(self, decay: float, start: int, stop: int) -> Tensor:
        """The numbers [start, stop) of an average."""
        if start == stop:
            return torch.empty(0)
        first = next(iter(self.layout.names))
        return self._range(ema_file(decay), first, start, stop)

    @property
    def emas(self) -> list[float]:
        """The decays of the averages that are here."""
        return [float(d) for d in self.state["emas"]]

    def _range(self, name: str, first: str, start: int, stop: int) -> Tensor:
        url = storage.join(self.url, name)
        length = int.from_bytes(storage.read(url, 0, 8), "little")
        header = json.loads(storage.read(url, 8, 8 + length))
        base = 8 + length + header[first]["data_offsets"][0]
        data = storage.read(url, base + 4 * start, base + 4 * stop)
        return torch.from_numpy(np.frombuffer(data, dtype="<f4").copy())


def steps(run_url: str) -> list[int]:
    """Steps whose folder holds a COMMIT, ascending; [] if there are none. Raises LookupFailed if the store could not be searched."""
    found = []
    try:
        for name in storage.names(storage.join(run_url, "checkpoints")):
            match = _FOLDER.fullmatch(name)
            if match and storage.exists(storage.join(run_url, "checkpoints", name, "COMMIT")):
                found.append(int(match.group(1)))
    except Exception as error:
        raise LookupFailed(
            f"could not look for checkpoints in {run_url}: {type(error).__name__}: {error}; "
            "the run is not started over, try again when it can be read"
        ) from error
    return found


def open_checkpoint(run_url: str, step: int) -> Checkpoint:
    """A committed step. Raises CheckpointError if its COMMIT is missing, empty, of a newer version, or not for this step."""
    url = folder(run_url, step)
    try:
        commit = json.loads(storage.read(storage.join(url, "COMMIT")))
        version, committed, files = commit["format"], commit["step"], commit["files"]
    except FileNotFoundError:
        raise CheckpointError(f"{url} has no COMMIT: it was never finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{url}/COMMIT is damaged: {error}") from error
    if version > FORMAT:
        raise CheckpointError(f"{url} has format {version}; this version of cmdist reads up to {FORMAT}, use a newer one")
    if committed != step or "state.json" not in files:
        raise CheckpointError(f"{url}/COMMIT belongs to step {committed}, not to {step}")
    return Checkpoint(url, step, commit)


def newest(run_url: str) -> Checkpoint | None:
    """The newest committed checkpoint, or None if there is none and the listing succeeded."""
    found = steps(run_url)
    return open_checkpoint(run_url, found[-1]) if found else None
