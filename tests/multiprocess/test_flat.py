"""The weights are updated as one vector: as many operations for many tensors as for few, and the bits of torch's
optimizer on each of them.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from ranks import Ranks

FEW, MANY = 2, 12  # layers of two tensors each
STEPS = 8  # RAdam divides by the second moment from the sixth on


def update(out: str) -> None:
    """For each ZeRO stage, depth and clipping: operations of a step's update, and whether all is as plain torch does
    it.
    """
    import collections
    import copy

    import torch
    from torch import Tensor, nn
    from torch.utils._python_dispatch import TorchDispatchMode

    from cmdist import build, config
    from cmdist.plan import Counter, plan
    from cmdist.system import distributed
    from cmdist.train.averages import Averages, Copy
    from cmdist.train.engine import KINDS, Engine
    from cmdist.train.optim import make_optimizer

    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: collections.Counter[str] = collections.Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "aten" and not func.is_view:
                self.found[func._overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    def optimizer(net: nn.Module, weight_decay: float = 0.01) -> torch.optim.Optimizer:
        return make_optimizer("radam", net.parameters(), betas=(0.5, 0.9), eps=1e-8, weight_decay=weight_decay)

    def vector(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.data.reshape(-1) for tensor in tensors])

    world, report = distributed.start(), {}
    for stage in (0, 1):
        for layers, clip in ((FEW, 0.0), (MANY, 0.0), (MANY, 0.1)):
            torch.manual_seed(0)
            net = nn.Sequential(*(nn.Linear(5, 5) for _ in range(layers)))
            net.register_parameter("unused", nn.Parameter(torch.randn(7)))
            plain = copy.deepcopy(net)
            theirs = optimizer(plain)
            engine = Engine(net, optimizer(net), zero_stage=stage, micro_batch=3, accumulation=2, clip=clip)
            averages, target = Averages(engine, (0.75,), 12, None), Copy(net)
            ema = vector(plain.parameters())
            for _ in range(STEPS):
                engine.set_lr(0.01)
                theirs.param_groups[0]["lr"] = 0.01
                for x in torch.randn(2, 3, 5):
                    engine.backward(engine(x).square().mean())
                    (plain(x).square().mean() / 2).backward()
                    with Operations() as seen:
                        engine.step()
                plain.unused.grad = torch.zeros(7)
                if clip:
                    nn.utils.clip_grad_norm_(plain.parameters(), clip)
                theirs.step()
                theirs.zero_grad()
                with seen:
                    averages.update(0)
                    target.update(net, 0.5)
                ema.lerp_(vector(plain.parameters()), 0.25)
            moments = [vector(theirs.state[p][kind] for p in plain.parameters()) for kind in KINDS[1:]]
            expected = [vector(plain.parameters()), *moments, ema]
            got = [*map(engine.slice, KINDS), averages.slices[0.75]]
            report[f"{stage} {layers} {clip}"] = {
                "operations": dict(seen.found),
                "apart": max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)),
                "called": torch.equal(vector(net.parameters()), got[0]),
            }
    c = config.load("configs/digits/ct.yaml", ["data.classes=0", "train.zero_stage=1"])
    net = build.network(c)
    engine = Engine(net, optimizer(net, c.optimizer.weight_decay), zero_stage=1, micro_batch=2, accumulation=1)
    averages, target = Averages(engine, c.train.ema, c.train.global_batch, None), Copy(net)
    for _ in range(STEPS):
        engine.set_lr(0.01)
        engine.backward(engine(torch.ones(2, 1, 8, 8), torch.ones(2)).square().mean())
        with Counter() as counter:
            engine.step()
            averages.update(0)
            target.update(net, 0.5)
    report["bytes"] = [counter.touched.total(), plan(c, 1).update]
    if world.first:
        Path(out).write_text(json.dumps(report))
    distributed.stop(world)


def test_one_pass_for_all_tensors_with_the_bits_of_one_for_each(tmp_path: Path) -> None:
    """The norm that clipping divides by is that of the vector: its last digits may be others."""
    out = tmp_path / "update.json"
    run = Ranks(1, tmp_path / "log", update, str(out))
    assert run.join() == [0], run.text
    found = json.loads(out.read_text())
    for stage in (0, 1):
        few, many, clipped = (found[f"{stage} {rest}"] for rest in (f"{FEW} 0.0", f"{MANY} 0.0", f"{MANY} 0.1"))
        assert few["operations"] == many["operations"]
        assert sum(many["operations"].values()) < 50
        assert few["apart"] == many["apart"] == 0.0
        assert 0.0 <= clipped["apart"] < 1e-6
        assert few["called"] and many["called"] and clipped["called"]
    assert sum(found[f"0 {MANY} 0.1"]["operations"].values()) < 50
    touched, planned = found["bytes"]
    assert touched == pytest.approx(planned, rel=0.05)
