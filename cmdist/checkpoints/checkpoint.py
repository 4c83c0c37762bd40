"""A checkpoint: what lies in its folder, how it is checked and read.

    RUN/checkpoints/step-0000010000-0003/   step 10,000, saved by attempt 3 (attempt.py), which alone writes into it
        slices-00000-of-00002.safetensors   master, exp_avg, exp_avg_sq and target, each as one flat fp32 slice of the
                                            canonical vector (layout.py); the slice's start is in the file's metadata
        ema-0.9999.safetensors              an average, whole, by parameter name, tensors in the vector's order
        state.json                          the step, where in which file each vector lies, all that is not a tensor
        COMMIT                              sizes and checksums of the others, whole and by blocks, written last:
                                            no COMMIT, no checkpoint
        VERIFIED                            everything was read back once and was what COMMIT says
        DAMAGED                             set aside: what was wrong when somebody wanted to go on from it
        UNFINISHED                          there before the first slice, and gone after COMMIT: a save that was killed
        REMOVING                            there before COMMIT goes: what is left of a removal that was killed

A folder with data but without COMMIT and without these last two has lost files that were there (search.py).
Nothing is pickled. Any number of ranks reads any slice by byte range, and no byte is used before the checksum of its
block was right.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from cmdist import migrations
from cmdist.checkpoints import documents
from cmdist.checkpoints.layout import Layout
from cmdist.errors import CheckpointError, Damaged, Malformed
from cmdist.system import storage

UNFINISHED, REMOVING = "UNFINISHED", "REMOVING"
FORMAT = 3  # 1: no blocks, no attempts; 2: blocks of 8 MiB
BLOCK = 2**20  # bytes; COMMIT says what it was
REQUEST = 16 * 2**20  # bytes read at once, at most
WINDOW = 2**26  # bytes of a file that is only verified, at a time: it may be larger than the memory
REREADS = 4  # of a block with a wrong checksum: it may have been the way, not the file


def folder(run_url: str, step: int, attempt: int = 0) -> str:
    """The URL of a step's checkpoint by an attempt; 0: not made by a training."""
    return storage.join(run_url, "checkpoints", f"step-{step:010d}" + (f"-{attempt:04d}" if attempt else ""))


def ema_file(decay: float) -> str:
    """The file name of an average."""
    return f"ema-{decay!r}.safetensors"


def checksum(parts: Sequence[bytes | memoryview]) -> str:
    """xxh3 (128 bits) of the concatenated parts, in hexadecimal."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def describe(parts: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """A file's entry in COMMIT: its size, its checksum, and those of its blocks."""
    blocks: list[str] = []
    digest, room = xxhash.xxh3_128(), BLOCK
    for part in parts:
        view = memoryview(part)
        while len(view):
            digest.update(view[:room])
            taken = min(room, len(view))
            view, room = view[taken:], room - taken
            if room == 0:
                blocks.append(digest.hexdigest())
                digest, room = xxhash.xxh3_128(), BLOCK
    if room < BLOCK:
        blocks.append(digest.hexdigest())
    return {"size": sum(len(part) for part in parts), "xxh3": checksum(parts), "blocks": blocks}


def header(tensors: Sequence[tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The beginning of a safetensors file of fp32 tensors (name, shape) in the order given; the numbers follow."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, shape in tensors:
        size = 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def pack(
    tensors: Sequence[tuple[str, tuple[int, ...]]], values: dict[str, Tensor] | Tensor, metadata: dict[str, str]
) -> list[bytes | memoryview]:
    """A safetensors file of fp32 tensors (name, shape) in the order given, from CPU memory, without copying it.

    `values` holds a vector for each name, or one vector for all.
    """
    vectors = [values] if isinstance(values, Tensor) else [values[name] for name, _ in tensors]
    return [
        header(tensors, metadata),
        *(v.contiguous().numpy().data.cast("B") for v in vectors if v.numel()),
    ]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. `commit` lists its files;
    reading is by blocks, each verified, and nothing of it is executed.
    """

    url: str
    step: int
    commit: dict[str, Any]
    _held: dict[tuple[str, int], memoryview] = field(
        default_factory=dict, repr=False, compare=False
    )  # verified blocks, until `release`

    @cached_property
    def state(self) -> dict[str, Any]:
        """state.json, its checksum verified, as today's format has it. Raises FormatError, Damaged."""
        where = f"{self.url}/state.json"
        document = documents.WHOLE if self.whole else documents.STATE
        try:
            tree = migrations.STATE.migrate(document.tree(self.read_file("state.json"), where), where)
        except Malformed as error:
            raise Damaged(str(error)) from error
        return document.check(tree, where)

    @cached_property
    def layout(self) -> Layout:
        """The canonical vector that this checkpoint was cut from."""
        return Layout.make((name, shape) for name, shape in self.state["layout"])

    @property
    def emas(self) -> list[float]:
        """The decays of the averages that are here."""
        return [float(d) for d in self.state["emas"]]

    def weights_of(self, decay: float) -> str:
        """The checksum of an average: which weights they are. Raises CheckpointError if it is not there."""
        return f"xxh3:{self._entry(ema_file(decay))['xxh3']}"

    @property
    def whole(self) -> bool:
        """Whether training can go on from it: all but the averages may have been thinned out."""
        return any(name.startswith("slices-") for name in self.commit["files"])

    def has(self, kind: str) -> bool:
        """Whether a vector (master, target, ...) is in the slices."""
        return bool(self.state["slices"]) and kind in self._header(self.state["slices"][0]["file"])[1]

    def read_file(self, name: str) -> bytes:
        """A whole file, verified. Raises CheckpointError if there is none,
        Damaged naming it if it is not what was committed.
        """
        return self._read(name, 0, self._entry(name)["size"])

    def verify(self, names: Sequence[str] | None = None) -> None:
        """Read files (all by default) and compare them with COMMIT. Raises Damaged."""
        for name in self.commit["files"] if names is None else names:
            size = self._entry(name)["size"]
            for start in range(0, max(size, 1), WINDOW):
                self._read(name, start, min(size, start + WINDOW))

    def fetch(self, rank: int, world: int) -> None:
        """Read this rank's part, about 1/world of all bytes, verified,
        and hold it in host memory for the reads that follow.

        The parts of the ranks together are everything that training needs. Raises Damaged.
        """
        total = self.layout.total
        start, stop = total * rank // world, total * (rank + 1) // world
        for kind in sorted(self._kinds):
            for name, low, high in self._places(kind, start, stop):
                self._blocks(name, low, high, hold=True)
        for decay in self.emas if start < stop else ():
            self._blocks(ema_file(decay), *self._place_of_ema(decay, start, stop), hold=True)

    @property
    def held(self) -> int:
        """Bytes that `fetch` has read, and holds."""
        return sum(len(block) for block in self._held.values())

    def release(self) -> None:
        """Forget what `fetch` holds."""
        self._held.clear()

    def read_state(self, kind: str, start: int, stop: int) -> Tensor:
        """The numbers [start, stop) of a vector (master, exp_avg, exp_avg_sq,
        target), fp32, read from the slices that hold them.
        """
        parts = [np.frombuffer(self._read(*place), dtype="<f4") for place in self._places(kind, start, stop)]
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0)

    def read_ema(self, decay: float, start: int, stop: int) -> Tensor:
        """The numbers [start, stop) of an average."""
        if start == stop:
            return torch.empty(0)
        content = self._read(ema_file(decay), *self._place_of_ema(decay, start, stop))
        return torch.from_numpy(np.frombuffer(content, dtype="<f4").copy())

    def _places(self, kind: str, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(file, first byte, one past the last) of the numbers [start, stop) of a vector, in order. Raises Damaged."""
        places, count = [], 0
        for entry in self.state["slices"]:
            low, high = max(start, entry["start"]), min(stop, entry["stop"])
            if low < high:
                base = self._base_of_slice(entry, kind) - 4 * entry["start"]
                places.append((entry["file"], base + 4 * low, base + 4 * high))
                count += high - low
        if count != stop - start:
            raise Damaged(
                f"checkpoint {self.url} is damaged: state.json has {count} of the {stop - start} numbers of '{kind}' "
                f"from {start} on"
            )
        return places

    def _place_of_ema(self, decay: float, start: int, stop: int) -> tuple[int, int]:
        base = self.state.get("ema_data", {}).get(repr(decay)) or self._base(ema_file(decay), self.layout.names[0])
        return base + 4 * start, base + 4 * stop

    @property
    def _kinds(self) -> list[str]:
        """The vectors that each slice file holds, in their order there."""
        if "kinds" in self.state:
            return list(self.state["kinds"])
        return [kind for kind in self._header(self.state["slices"][0]["file"])[1] if kind != "__metadata__"]

    def _base_of_slice(self, entry: dict[str, Any], kind: str) -> int:
        """The place of a vector's slice in its file, from state.json; an older one does not know, but the file does."""
        if "data" not in entry:
            return self._base(entry["file"], kind)
        return int(entry["data"]) + 4 * (entry["stop"] - entry["start"]) * self._kinds.index(kind)

    def _base(self, name: str, tensor: str) -> int:
        """The place of a tensor in a safetensors file, from its header."""
        base, header = self._header(name)
        try:
            return base + int(header[tensor]["data_offsets"][0])
        except (LookupError, TypeError, ValueError) as error:
            raise Damaged(f"checkpoint {self.url} is damaged: {name} does not say where {tensor} lies") from error

    def _header(self, name: str) -> tuple[int, dict[str, Any]]:
        length = int.from_bytes(self._read(name, 0, 8, hold=True), "little")
        if 8 + length > self._entry(name)["size"]:
            raise Damaged(f"checkpoint {self.url} is damaged: {name} is no safetensors file, its header has no end")
        return 8 + length, documents.HEADER.read(self._read(name, 8, 8 + length, hold=True), f"{self.url}/{name}")

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] | None = self.commit["files"].get(name)
        if entry is None:
            raise CheckpointError(
                f"checkpoint {self.url} holds no {name}; it holds {', '.join(sorted(self.commit['files']))}"
            )
        return entry

    def _read(self, name: str, start: int, stop: int, hold: bool = False) -> bytes:
        """Bytes [start, stop) of a file, from blocks whose checksums are right."""
        blocks, length = self._blocks(name, start, stop, hold)
        first = start // length * length
        blocks[-1] = blocks[-1][: stop - first - (len(blocks) - 1) * length]
        blocks[0] = blocks[0][start - first :]
        return b"".join(blocks)

    def _blocks(self, name: str, start: int, stop: int, hold: bool) -> tuple[list[memoryview], int]:
        """The blocks that bytes [start, stop) of a file touch, their checksums right, at least one; and their
        length.
        """
        entry = self._entry(name)
        size, sums = entry["size"], entry.get("blocks") or [entry["xxh3"]]
        length = self.commit.get("block_size", 8 * 2**20) if "blocks" in entry else max(size, 1)
        if len(sums) != max(1, -(-size // length)):  # so no size is larger than what its file says
            raise Damaged(
                f"checkpoint {self.url} is damaged: COMMIT has {len(sums)} blocks of {length} bytes for the {size} of "
                f"{name}"
            )
        numbers = range(start // length, max(-(-stop // length), start // length + 1))
        blocks = {i: self._held[name, i] for i in numbers if (name, i) in self._held}
        url = storage.join(self.url, name)
        for _ in range(1 + REREADS):
            missing = [i for i in numbers if i not in blocks]
            if not missing:
                break
            runs = list(_runs(missing, max(1, REQUEST // length)))
            try:
                ranges = [(run.start * length, min(size, run.stop * length)) for run in runs]
                read = storage.read_ranges(url, ranges) if size else [storage.read(url)]
            except FileNotFoundError:
                raise Damaged(f"checkpoint {self.url} is damaged: {name} is missing") from None
            for run, data in zip(runs, read, strict=True):
                parts = {i: memoryview(data)[(i - run.start) * length : (i - run.start + 1) * length] for i in run}
                blocks |= {i: part for i, part in parts.items() if checksum([part]) == sums[min(i, len(sums) - 1)]}
        else:
            if [i for i in numbers if i not in blocks]:
                content = (
                    f"{storage.size(url)} bytes, {size} were committed"
                    if storage.size(url) != size
                    else "a wrong checksum"
                )
                raise Damaged(f"checkpoint {self.url} is damaged: {name} has {content}")
        if hold:
            self._held.update(((name, i), block) for i, block in blocks.items())
        return [blocks[i] for i in numbers], length


def _runs(numbers: Sequence[int], most: int) -> Iterator[range]:
    """Ascending numbers as ranges without gaps, of `most` numbers at most."""
    first = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1 or i - first == most:
            yield range(numbers[first], numbers[i - 1] + 1)
            first = i
