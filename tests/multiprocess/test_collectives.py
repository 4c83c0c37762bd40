"""Calls and bytes of every collective of a step against what cmdist/communication.py says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cmdist import build, communication, config
from cmdist.communication import Network
from ranks import Ranks
from training import write_config

STEP = 1  # of the run, neither its first nor one with a log line


def counted(record: str, bucket: int, arguments: list[str]) -> None:
    """pipelines/train.py; writes down what is sent in one step."""
    import torch
    import torch.distributed as dist

    from cmdist.train import engine
    from cmdist.train.trainer import Trainer
    from ranks import pipeline

    engine.BUCKET = bucket
    sent: list[tuple[int, str, int]] = []
    now = {"step": -1}

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value)) if isinstance(value, list | tuple) else 0

    def count(name: str) -> None:
        plain = getattr(dist, name)

        def counting(*values: Any, **more: Any) -> Any:
            sent.append((now["step"], name, max(map(size, (*values, *more.values())), default=0)))
            return plain(*values, **more)

        setattr(dist, name, counting)

    names = [name for name in dir(dist) if name.startswith(("all_", "reduce", "broadcast", "gather", "scatter"))]
    for name in [*names, "barrier", "send", "recv", "isend", "irecv", "batch_isend_irecv"]:
        if callable(getattr(dist, name)) and not isinstance(getattr(dist, name), type):
            count(name)
    step = Trainer.train_step

    def counting_step(self: Trainer, at: Any) -> Any:
        now["step"] = self.step
        return step(self, at)

    Trainer.train_step = counting_step  # type: ignore[method-assign]
    pipeline("train").main(arguments)
    Path(f"{record}-{os.environ['RANK']}.json").write_text(json.dumps([each[1:] for each in sent if each[0] == STEP]))


CLIPPED, SCALED = "optimizer.clip=1.0", "train.precision=fp16"


@pytest.mark.parametrize(
    ("stage", "ranks", "keys"),
    [(0, 2, [SCALED]), (1, 2, [CLIPPED]), (2, 2, [CLIPPED, SCALED]), (0, 4, []), (1, 4, []), (2, 4, []), (1, 1, [])]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 2, []), (1, 2, []), (2, 2, []), (1, 4, [SCALED]))],
)
def test_a_step_sends_what_is_said(tmp_path: Path, digits: str, stage: int, ranks: int, keys: list[str]) -> None:
    """With two micro-batches for each rank, in one bucket; on 4 ranks in many. Clipping and a scale send no more."""
    overrides = [f"train.zero_stage={stage}", "train.steps=4", "train.log_every=4", f"train.micro_batch={8 // ranks}"]
    overrides += keys
    path = write_config(tmp_path, digits)
    made = config.load(path, overrides)
    parameters = sum(p.numel() for p in build.on_meta(made).parameters())
    bucket = parameters // 3 if ranks == 4 else parameters + 1
    run = Ranks(ranks, tmp_path / "log", counted, str(tmp_path / "sent"), bucket, [path, *overrides])
    assert run.join() == [0] * ranks, run.text
    expected = communication.step(made, parameters, ranks)
    for rank in range(ranks):
        sent = json.loads((tmp_path / f"sent-{rank}.json").read_text())
        if ranks == 1:
            assert sum(size for _, size in sent) <= 2 * 4 * (parameters + 2) + 12  # to itself, over no wire
            continue
        by_kind: dict[str, list[int]] = {}
        for name, size in sent:
            by_kind.setdefault({"all_gather_into_tensor": "all_gather"}.get(name, name), []).append(size)
        assert set(by_kind) == {each.kind for each in expected}
        for kind, sizes in by_kind.items():
            assert sum(sizes) == sum(each.bytes for each in expected if each.kind == kind)
            if ranks == 2 or kind == "all_gather":
                assert len(sizes) == sum(each.calls or 0 for each in expected if each.kind == kind)
            elif stage:
                assert len(sizes) > sum(each.calls or 0 for each in expected if each.kind == kind)
    assert config.load(path, overrides).micro_batches // ranks == 2


def test_rings_within_and_between_nodes() -> None:
    """Two ranks of a node: half of the tensor each way and back. Two nodes of 8: 7/8 within, 1/2 between."""
    reduce = [communication.Collective("gradients", "all_reduce", 1, 10**9)]
    gather = [communication.Collective("weights", "all_gather", 1, 10**9)]
    network = Network(8, 100.0, 10.0)
    assert communication.seconds(reduce, 1, network) == 0
    assert communication.seconds(reduce, 2, network) == pytest.approx(0.01)
    assert communication.seconds(gather, 2, network) == pytest.approx(0.005)
    assert communication.seconds(gather, 16, network) == pytest.approx(7 / 8 / 100 + 1 / 2 / 10)
    assert communication.seconds(reduce, 16, network) == pytest.approx(2 * (7 / 8 / 100 + 1 / 2 / 10))
