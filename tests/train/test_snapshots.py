"""The copy of a rank's state: right when it is given, in memory that is taken once, and pinned beside a GPU."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmdist.checkpoints.layout import Layout, Piece, overlap
from cmdist.train.averages import Copy
from cmdist.train.engine import KINDS
from cmdist.train.snapshots import Snapshots

START, STOP = 3, 11


class FakeEngine:
    """A rank in the middle, of a module of 14 weights, without DeepSpeed, whose slice of each vector lies in two
    pieces.
    """

    def __init__(self) -> None:
        self.module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(2, 1, bias=False))
        self.layout, self.start, self.stop = Layout.of(self.module), START, STOP
        self.live = {kind: [Piece(0, torch.randn(7)), Piece(7, torch.randn(7))] for kind in KINDS}

    def pieces(self, kind: str) -> list[Piece]:
        return overlap(self.live[kind], START, STOP)


def expected(pieces: Sequence[Piece]) -> Tensor:
    return torch.cat([piece.tensor for piece in pieces])[START:STOP].clone()


def make() -> tuple[Any, Any, Copy]:
    engine = FakeEngine()
    target = Copy(engine.module)
    return engine, SimpleNamespace(slices={0.9: torch.randn(STOP - START), 0.99: torch.randn(STOP - START)}), target


def test_it_is_a_copy_and_the_next_one_takes_its_place() -> None:
    engine, averages, target = make()
    snapshots = Snapshots(engine, averages, {"target": target})
    places = set()
    for number in range(3):
        wanted = {kind: expected(engine.live[kind]) for kind in KINDS}
        wanted["target"] = torch.cat([p.data.view(-1) for p in target.module.parameters()])[START:STOP].clone()
        of_averages = {decay: values.clone() for decay, values in averages.slices.items()}
        taken = snapshots.take({"number": number})
        for live in (*(p.tensor for pieces in engine.live.values() for p in pieces), *averages.slices.values()):
            live.add_(1.0)  # training goes on
        for parameter in target.module.parameters():
            parameter.data.add_(1.0)
        assert taken.start == START and taken.state == {"number": number}
        assert list(taken.vectors) == [*KINDS, "target"] and list(taken.averages) == [0.9, 0.99]
        for found, right in ((taken.vectors, wanted), (taken.averages, of_averages)):
            assert all(torch.equal(found[name], right[name]) for name in right)
        places.add(tuple(v.data_ptr() for v in (*taken.vectors.values(), *taken.averages.values())))
    assert len(places) == 1 and len(set(*places)) == 6, "the memory of one snapshot, of which no two vectors share any"


def test_without_a_target_and_without_averages() -> None:
    engine, averages, _ = make()
    averages.slices = {}
    taken = Snapshots(engine, averages, {}).take({})
    assert list(taken.vectors) == list(KINDS) and taken.averages == {}


def test_beside_a_gpu_the_snapshot_is_there_when_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU copies into pinned memory after the call that asks for it has come back. Without a GPU: such copies wait
    here until the device is waited for, and copies into other memory are done at once, as CUDA does them.
    """
    engine, averages, target = make()
    engine.module = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    pinned: list[Tensor] = []
    late: list[tuple[Tensor, Tensor]] = []
    empty, copy = torch.empty, torch.Tensor.copy_

    def make_room(*shape: int, pin_memory: bool = False) -> Tensor:
        room = empty(*shape).fill_(float("nan"))
        pinned.extend([room] if pin_memory else [])
        return room

    def copy_to(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        in_pinned = any(into.untyped_storage().data_ptr() == room.untyped_storage().data_ptr() for room in pinned)
        if non_blocking and in_pinned:
            late.append((into, source))
            return into
        return copy(into, source)

    def wait() -> None:
        while late:
            copy(*late.pop())

    monkeypatch.setattr(torch, "empty", make_room)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_to)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    snapshots = Snapshots(engine, averages, {"target": target})
    places = set()
    for _ in range(2):
        wanted = {kind: expected(engine.live[kind]) for kind in KINDS}
        of_averages = {decay: values.clone() for decay, values in averages.slices.items()}
        taken = snapshots.take({})
        for live in (*(p.tensor for pieces in engine.live.values() for p in pieces), *averages.slices.values()):
            live.add_(1.0)  # training goes on
        assert all(torch.equal(taken.vectors[kind], wanted[kind]) for kind in KINDS)
        assert all(torch.equal(taken.averages[decay], of_averages[decay]) for decay in of_averages)
        places |= {v.untyped_storage().data_ptr() for v in (*taken.vectors.values(), *taken.averages.values())}
    assert places == {room.untyped_storage().data_ptr() for room in pinned}, "all of it in pinned memory, taken once"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    engine, averages, _ = make()
    engine.module.cuda()
    engine.live = {kind: [Piece(p.start, p.tensor.cuda()) for p in pieces] for kind, pieces in engine.live.items()}
    snapshots = Snapshots(engine, averages, {"target": Copy(engine.module)})
    taken = snapshots.take({})
    assert all(v.is_pinned() for v in taken.vectors.values())
    assert all(torch.equal(taken.vectors[kind], expected(engine.live[kind]).cpu()) for kind in KINDS)
