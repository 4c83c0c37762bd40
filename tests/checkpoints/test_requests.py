"""What a rank asks of the store when it comes back, against the number of ranks, without so many processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cmdist.checkpoints import checkpoint, search
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.saver import Saver, Snapshot, _Job, owners
from cmdist.system import distributed
from cmdist.system.distributed import World

KINDS = ("master", "exp_avg", "exp_avg_sq", "target")
EMAS = (0.999, 0.9999)
BLOCK = 256


def vector(kind: str, total: int) -> torch.Tensor:
    return torch.arange(total, dtype=torch.float32) + 1000 * [*KINDS, *map(str, EMAS)].index(kind)


def write(run: str, ranks: int, each: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A checkpoint of `ranks` ranks with `each` numbers in a slice, `spare` fewer in the last ones, one after the
    other.
    """
    monkeypatch.setattr(checkpoint, "BLOCK", BLOCK)
    monkeypatch.setattr(distributed, "gloo_group", lambda size, longer=0.0: None)
    total = ranks * each - spare
    layout = Layout.make([("w", (total - 5,)), ("b", (5,))])
    outcomes: list[dict[str, Any]] = []
    whole = {kind: vector(kind, total) for kind in (*KINDS, *map(str, EMAS))}
    averages = {decay: whole[str(decay)] for decay in EMAS}
    for rank in reversed(range(ranks)):
        low, high = min(rank * each, total), min((rank + 1) * each, total)
        vectors = {kind: whole[kind][low:high] for kind in KINDS}
        saver = Saver(run, "id", layout, World(rank, ranks))
        job = _Job(7, Snapshot(low, vectors, averages, {}), checkpoint.folder(run, 7))
        saver._write_mine(job, averages if rank == 0 else {})
        outcomes.insert(0, {"start": low, "numel": high - low, "files": job.written, "error": None})
    saver._commit(job, outcomes)
    return layout


def counting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(file, bytes) of each range that is asked for from now on."""
    asked: list[tuple[str, int]] = []
    plain = checkpoint.storage.read_ranges

    def count(url: str, ranges: Any) -> list[bytes]:
        asked.extend((url.rpartition("/")[2], high - low) for low, high in ranges)
        return plain(url, ranges)

    monkeypatch.setattr(checkpoint.storage, "read_ranges", count)
    return asked


def without_places(found: Checkpoint) -> Checkpoint:
    """As a version before this one wrote it."""
    state = {key: value for key, value in found.state.items() if key not in ("kinds", "ema_data")}
    state["slices"] = [{key: value for key, value in e.items() if key != "data"} for e in state["slices"]]
    older = Checkpoint(found.url, found.step, found.commit)
    older.__dict__["state"] = state
    return older


def test_requests_and_bytes_of_a_rank_do_not_grow_with_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many ranks come back as have saved. Counted in ranges, which a store answers one by one."""
    each, found = 500, {}
    for ranks in (16, 64, 1024):
        run = f"memory://requests/{ranks}"
        write(run, ranks, each, 3, monkeypatch)
        opened = search.newest(run)
        assert opened is not None and opened.state
        asked = counting(monkeypatch)
        costs = []
        for rank in (0, 1, ranks // 2, ranks - 1):
            asked.clear()
            fresh = Checkpoint(opened.url, opened.step, opened.commit)
            fresh.__dict__["state"] = opened.state
            fresh.fetch(rank, ranks)
            costs.append((len(asked), sum(size for _, size in asked)))
            total = opened.layout.total
            start, stop = total * rank // ranks, total * (rank + 1) // ranks
            for kind in KINDS:
                assert torch.equal(fresh.read_state(kind, start, stop), vector(kind, total)[start:stop])
            for decay in EMAS:
                assert torch.equal(fresh.read_ema(decay, start, stop), vector(str(decay), total)[start:stop])
        found[ranks] = (max(n for n, _ in costs), max(size for _, size in costs))
        monkeypatch.undo()
    needed = 4 * each * (len(KINDS) + len(EMAS))
    for requests, size in found.values():
        assert requests <= 2 * len(KINDS) + len(EMAS), "a part lies in two slices at most"
        assert size <= needed + requests * 2 * BLOCK, "and begins and ends within a block"
    assert found[1024] == found[64]


def test_an_older_state_without_places_is_read_from_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    run, ranks = "memory://requests/older", 64
    layout = write(run, ranks, 500, 3, monkeypatch)
    opened = search.newest(run)
    assert opened is not None
    asked = counting(monkeypatch)
    for rank in (0, 31, ranks - 1):
        start, stop = layout.total * rank // ranks, layout.total * (rank + 1) // ranks
        older = without_places(opened)
        asked.clear()
        older.fetch(rank, ranks)
        assert len({name for name, _ in asked}) <= 2 + 1 + len(EMAS), "the slices it needs, one more, and the averages"
        for kind in KINDS:
            assert torch.equal(older.read_state(kind, start, stop), vector(kind, layout.total)[start:stop])
        for decay in EMAS:
            assert torch.equal(older.read_ema(decay, start, stop), vector(str(decay), layout.total)[start:stop])


def test_the_places_in_state_json_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of all lengths, one of them empty."""
    layout = write(str(tmp_path), 5, 40, 50, monkeypatch)
    folder = tmp_path / "checkpoints" / "step-0000000007"
    state = json.loads((folder / "state.json").read_text())
    assert state["slices"][-1]["start"] == state["slices"][-1]["stop"] == layout.total

    def header(name: str) -> tuple[int, dict[str, Any]]:
        data = (folder / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        return 8 + length, json.loads(data[8 : 8 + length])

    for entry in state["slices"]:
        base, tensors = header(entry["file"])
        assert entry["data"] == base
        for number, kind in enumerate(state["kinds"]):
            assert tensors[kind]["data_offsets"][0] == 4 * (entry["stop"] - entry["start"]) * number
    assert state["kinds"] == list(KINDS)
    for decay in EMAS:
        assert state["ema_data"][repr(decay)] == header(checkpoint.ema_file(decay))[0]


def test_averages_are_written_on_as_many_nodes_as_there_are() -> None:
    by_node = owners([local for _ in range(128) for local in range(8)])  # rank = 8 node + local rank
    assert by_node[:128] == [8 * node for node in range(128)] and sorted(by_node) == list(range(1024))
    cyclic = owners([rank // 4 for rank in range(8)])  # ranks dealt out to four nodes in turn
    assert {rank % 4 for rank in cyclic[:4]} == {0, 1, 2, 3}
    assert owners([0, 1, 2, 3]) == [0, 1, 2, 3], "on one node as before"
