"""What one rank reads for all: values, weights and errors, on three ranks of two nodes."""

import os
from pathlib import Path

import torch

from cmdist.errors import CmdistError, DataError
from cmdist.system import distributed, sharing
from cmdist.system.distributed import PeerFailed, World
from ranks import Ranks
from vgg import write_vgg


def fails(error: Exception) -> None:
    raise error


def caught(kind: type[Exception], action) -> str:
    try:
        action()
    except Exception as error:
        assert type(error) is kind, repr(error)
        return str(error)
    raise AssertionError("nothing was raised")


def on_a_rank(vgg: str) -> None:
    from cmdist.nets.lpips import load_lpips

    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = str(rank % 2)  # ranks 0 and 1 are one node, 2 another
    world = distributed.start()
    called = []
    assert sharing.once(world, lambda: called.append(rank) or {"of": rank}) == {"of": 0}
    sharing.on_each_node(world, lambda: called.append("node"))
    assert called == [[0, "node"], [], ["node"]][rank]
    assert sharing.to_first(rank, world.control) == ([0, 1, 2] if rank == 0 else [])
    assert sharing.from_first(rank, world.control) == 0

    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3, dtype=torch.int16), "c": torch.empty(0, 2)}
    sent = sharing.tensors_once(world, lambda: tensors if rank == 0 else fails(AssertionError("read here too")))
    assert list(sent) == ["a", "b", "c"]
    assert all(torch.equal(sent[n], t) and sent[n].dtype == t.dtype for n, t in tensors.items())

    say = caught(DataError, lambda: sharing.once(world, lambda: fails(DataError("no data"))))
    assert say == "no data"
    kind = KeyError if rank == 0 else PeerFailed
    assert caught(kind, lambda: sharing.tensors_once(world, lambda: fails(KeyError("k")))).endswith("'k'")
    second = lambda: fails(DataError("a shard is missing")) if rank == 2 else None  # noqa: E731
    assert caught(DataError, lambda: sharing.on_each_node(world, second)) == "a shard is missing"
    sharing.on_each_node(world, lambda: fails(CmdistError("never called")) if rank == 1 else None)

    mine = vgg if rank == 0 else "nowhere.pth"
    loss, weights = load_lpips(mine, "avg", world=world), torch.load(vgg, mmap=True)
    own = [
        p for part in loss.slices for layer in part if isinstance(layer, torch.nn.Conv2d) for p in layer.parameters()
    ]
    assert len(own) == 26 and all(torch.equal(a, b) for a, b in zip(own, weights.values(), strict=True))
    distributed.stop(world)
    print(f"rank {rank} is right")


def test_one_rank_reads_for_all_and_all_fail_as_one(tmp_path: Path) -> None:
    ranks = Ranks(3, tmp_path / "log", on_a_rank, str(write_vgg(tmp_path / "vgg16.pth")))
    assert ranks.join() == [0, 0, 0], ranks.text
    assert ranks.text.count("is right") == 3


def test_alone_nothing_is_sent() -> None:
    weights = {"a": torch.ones(2)}
    assert sharing.once(World(), lambda: 5) == 5
    assert sharing.tensors_once(World(), lambda: weights)["a"] is weights["a"]
    assert caught(KeyError, lambda: sharing.once(World(), lambda: fails(KeyError("k")))) == "'k'"
    assert caught(DataError, lambda: sharing.on_each_node(World(), lambda: fails(DataError("d")))) == "d"
