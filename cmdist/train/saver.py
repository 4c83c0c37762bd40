"""Saving in the background: the loop waits only for the copy to host memory; COMMIT is written when every rank's files are there."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmdist import distributed, storage
from cmdist.distributed import World
from cmdist.errors import CheckpointError
from cmdist.train import checkpoint
from cmdist.train.layout import Layout


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves, in host memory: its slices of the vectors from `start` on, and of the averages."""

    start: int
    vectors: dict[str, Tensor]
    averages: dict[float, Tensor]
    state: dict[str, Any]  # equal on all ranks


class Saver:
    """Writes snapshots one at a time; a save that comes while one is under way waits for it. `keep` committed steps stay, 0: all."""

    def __init__(self, run_url: str, run_id: str, layout: Layout, world: World, keep: int = 0) -> None:
        self._run_url, self._run_id, self._layout, self._world, self._keep = run_url, run_id, layout, world, keep
        # its own group: the messages of a save run beside those of training and must not mix with them
        self._group = distributed.gloo_group(world.size)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Start writing step `step`; all ranks must call. Raises the error of the save before, if it had one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(step, snapshot), name=f"save-{step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save that is under way. Raises what went wrong, on every rank."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything has."""
        if self._error is not None:
            raise self._error

    def _run(self, step: int, snapshot: Snapshot) -> None:
        try:
            self._save(step, snapshot)
        except BaseException as error:  # raised again in the loop
            self._error = error

    def _save(self, step: int, snapshot: Snapshot) -> None:
        url = checkpoint.folder(self._run_url, step)
        averages = self._collect(snapshot)
        mine: dict[str, Any] = {"start": snapshot.start, "files": {}, "error": None}
        try:
            self._write_mine(url, snapshot, averages, mine)
        except Exception as error:
            mine["error"] = f"rank {self._world.rank}: {type(error).__name__}: {error}"
        ranks = distributed.gather(mine, self._group)
        errors = [r["error"] for r in ranks if r["error"]]
        if not errors and self._world.first:
            try:
                self._commit(url, step, snapshot, ranks)
            except Exception as error:
                errors = [f"rank 0: {type(error).__name__}: {error}"]
        errors = distributed.gather(errors, self._group)[0]  # nobody goes on before COMMIT is there
        if errors:
            raise CheckpointError(f"the checkpoint of step {step} in {url} was not committed: {'; '.join(errors)}")

    def _collect(self, snapshot: Snapshot) -> dict[float, Tensor]:
        """The whole averages that this rank writes: average i goes to rank i modulo world."""
        if self._world.size == 1:
            return snapshot.averages
        whole = {}
        lengths = distributed.gather(next(iter(snapshot.averages.values())).numel(), self._group)
        for i, (decay, values) in enumerate(snapshot.averages.items()):
            owner = i % self._world.size
            padded = torch.zeros(max(lengths))
            padded[: values.numel()] = values
            parts = [torch.empty(max(lengths)) for _ in lengths] if owner == self._world.rank else None
            dist.gather(padded, parts, dst=owner, group=self._group)
            if parts is not None:
                whole[decay] = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
        return whole

    def _write_mine(self, url: str, snapshot: Snapshot, averages: dict[float, Tensor], mine: dict[str, Any]) -> None:
        vectors = snapshot.vectors
        mine["stop"] = snapshot.start + vectors["master"].numel()
        mine["file"] = f"slices-{self._world.rank:05d}-of-{self._world.size:05d}.safetensors"
        shapes = [(name, tuple(v.shape)) for name, v in vectors.items()]
        self._write(url, mine, mine["file"], checkpoint.pack(shapes, vectors, {"start": str(snapshot.start)}))
        tensors = list(zip(self._layout.names, self._layout.shapes, strict=True))
        for decay, values in averages.items():
            self._write(url, mine, checkpoint.ema_file(decay), checkpoint.pack(tensors, values, {"decay": repr(decay)}))

    def _write(self, url: str, mine: dict[str, Any], name: str, parts: Sequence[bytes | memoryview]) -> None:
        storage.write(storage.join(url, name), parts)
        mine["files"][name] = {"size": sum(len(part) for part in parts), "xxh3": checkpoint.checksum(parts)}

    def _commit(self, url: str, step: int, snapshot: Snapshot, ranks: list[dict[str, Any]]) -> None:
        state = snapshot.state | {
            "step": step,
            "world_size": self._world.size,
            "layout": [[name, list(shape)] for name, shape in zip(self._layout.names, self._layout.shapes, strict=True)],
            "emas": list(snapshot.averages),
            "slices": [{"file": r["file"], "start": r["start"], "stop": r["stop"]} for r in ranks],
        }
        first: dict[str, Any] = {"files": {}}
        self._write(url, first, "state.json", [json.dumps(state, indent=1).encode()])
        files = {name: entry for r in [*ranks, first] for name, entry in r["files"].items()}
        commit = {"format": checkpoint.FORMAT, "run": self._run_id, "step": step, "files": files}
        storage.write(storage.join(url, "COMMIT"), json.dumps(commit, indent=1).encode())
        if self._keep:
            for old in checkpoint.steps(self._run_url)[: -self._keep]:
                # COMMIT first: a removal that is cut short leaves no checkpoint with holes
                storage.remove(storage.join(checkpoint.folder(self._run_url, old), "COMMIT"))
                storage.remove(checkpoint.folder(self._run_url, old))
