"""Copies of a rank's state in host memory that is taken once and used for every save."""

from collections.abc import Mapping
from typing import Any

import torch

from cmdist.checkpoints.layout import Piece, copy_slice
from cmdist.checkpoints.saver import Snapshot
from cmdist.train.averages import Averages, Copy
from cmdist.train.engine import KINDS, Engine


class Snapshots:
    """Room for one snapshot of this rank: each overwrites the one before, whose save must be done.

    Beside a GPU the memory is pinned, so that the copies run at the full speed of the bus and are waited for once,
    together.
    """

    def __init__(self, engine: Engine, averages: Averages, copies: Mapping[str, Copy]) -> None:
        self._engine, self._averages, self._copies = engine, averages, copies
        self._kinds = [*KINDS, *copies]
        self._on_gpu = next(engine.module.parameters()).device.type == "cuda"
        vectors = len(self._kinds) + len(averages.slices)
        self._memory = torch.empty(vectors, engine.stop - engine.start, pin_memory=self._on_gpu)

    def take(self, state: dict[str, Any]) -> Snapshot:
        """Copy vectors and averages, fp32 and (stop - start,) each; `state` goes along as it is."""
        engine = self._engine
        sources: list[list[Piece]] = [engine.pieces(kind) for kind in KINDS]
        sources += [each.pieces(engine.layout, engine.start, engine.stop) for each in self._copies.values()]
        sources += [[Piece(engine.start, values)] for values in self._averages.slices.values()]
        for pieces, room in zip(sources, self._memory, strict=True):
            copy_slice(pieces, room, non_blocking=self._on_gpu)
        if self._on_gpu:
            torch.cuda.synchronize()
        rows = list(self._memory)
        averages = dict(zip(self._averages.slices, rows[len(self._kinds) :], strict=True))
        return Snapshot(engine.start, dict(zip(self._kinds, rows, strict=False)), averages, state)
