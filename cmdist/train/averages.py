"""EMAs of the weights for evaluation, on this rank's slice of them, and whole copies of the network for the loss."""

import copy

import torch
from torch import Tensor, nn

from cmdist.checkpoints.layout import Layout, Piece, load_slice, overlap, whole
from cmdist.train.engine import Engine, all_slices


def decay_at(average: float, step: int, batch: int, ramp_up: float | None) -> float:
    """What the average of that name keeps of itself after `step` steps of `batch` images.

    Below 1 it is named by its decay; else by its half-life in images, which with `ramp_up` is at most so many times the
    images of the steps before (EDM, appendix F: 500,000 and 0.05), so that the start is forgotten.
    """
    if average < 1:
        return average
    half_life = average if ramp_up is None else min(average, ramp_up * step * batch)
    return 0.5 ** (batch / half_life) if half_life else 0.0


class Averages:
    """EMAs of the fp32 weights, one slice for each decay or half-life: 1/world of the memory and no communication."""

    def __init__(self, engine: Engine, decays: tuple[float, ...], batch: int, ramp_up: float | None) -> None:
        self._engine, self._batch, self._ramp_up = engine, batch, ramp_up
        self.slices: dict[float, Tensor] = {decay: engine.slice("master", _device(engine)) for decay in decays}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """ema <- decay ema + (1 - decay) weights; once after each step that was really taken, the first one is 0."""
        keeps = {average: decay_at(average, step, self._batch, self._ramp_up) for average in self.slices}
        for piece in self._engine.pieces("master"):
            place = piece.start - self._engine.start
            for decay, values in self.slices.items():
                values[place : place + piece.tensor.numel()].lerp_(piece.tensor, 1.0 - keeps[decay])

    def load(self, decay: float, values: Tensor) -> None:
        """Set this rank's slice of one average."""
        self.slices[decay].copy_(values)


class Copy:
    """A full fp32 copy of what is trained: the target theta^-, or a teacher that takes the student's weights.

    What is called is `called`, a copy of the student that may hold weights in less precision and follows the fp32 ones;
    without it, the fp32 copy itself.
    """

    def __init__(self, student: nn.Module, called: nn.Module | None = None) -> None:
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.called = self.module if called is None else called
        self._lower: list[Tensor] = []
        self._truth: list[Tensor] = []
        for ours, theirs in zip(self.called.parameters(), self.module.parameters(), strict=True):
            if ours.dtype == theirs.dtype:
                ours.data = theirs.data  # one memory for both
            else:
                self._lower.append(ours.data)
                self._truth.append(theirs.data)
        self._follow()

    @torch.no_grad()
    def update(self, student: nn.Module, mu: float) -> None:
        """theta^- <- mu theta^- + (1 - mu) theta (paper, Algorithms 2 and 3); mu in [0, 1)."""
        torch._foreach_lerp_(
            [p.data for p in self.module.parameters()], [p.data for p in student.parameters()], 1.0 - mu
        )
        self._follow()

    def pieces(self, layout: Layout, start: int, stop: int) -> list[Piece]:
        """[start, stop) of the copy as flat views of live memory; every rank holds all of it and saves a part."""
        return overlap(self._pieces(layout), start, stop)

    def load(self, layout: Layout, start: int, values: Tensor) -> None:
        """Set the whole copy from each rank's slice; all ranks must call."""
        for first, part in all_slices(values, start):
            load_slice(self._pieces(layout), first, part)
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        if self._lower:
            torch._foreach_copy_(self._lower, self._truth)

    def _pieces(self, layout: Layout) -> list[Piece]:
        return whole(layout, [p.data for p in self.module.parameters()])


def _device(engine: Engine) -> torch.device:
    return next(engine.module.parameters()).device
