"""The learning rate of each step, and RAdam in one pass beside torch's."""

import pytest
import torch

from cmdist.train import optim
from cmdist.train.optim import learning_rate, make_optimizer


def test_constant_without_warm_up_or_decay() -> None:
    assert {learning_rate(step, 0.5, 100) for step in range(100)} == {0.5}


def test_warm_up_then_constant_then_linear_to_zero() -> None:
    lr = [learning_rate(step, 1.0, 100, warmup_steps=10, decay_fraction=0.2) for step in range(100)]
    assert lr[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(lr[10:81]) == {1.0}
    assert lr[80:] == pytest.approx([(100 - s) / 20 for s in range(80, 100)])


def test_after_the_end_it_stays_zero() -> None:
    assert learning_rate(150, 1.0, 100, decay_fraction=0.2) == 0.0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_radam_in_one_pass_is_torchs(compiled: bool, weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its first steps, which do not divide by the second moment, and those after; as written and compiled."""
    if not compiled:
        monkeypatch.setattr(optim, "_compiled_pass", lambda: optim._pass)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1003, generator=generator)
    both = []
    for how in (False, True):
        p = torch.nn.Parameter(first.clone())
        optimizer = make_optimizer("radam", [p], betas=(0.9, 0.99), eps=1e-3, weight_decay=weight_decay, compiled=how)
        optimizer.state[p] = {name: torch.zeros_like(p.data) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p]["step"] = torch.tensor(0.0)
        both.append((p, optimizer))
    for step in range(20):
        gradient = torch.randn(1003, generator=generator)
        for p, optimizer in both:
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            p.grad = gradient.clone()
            optimizer.step()
        (theirs, by_torch), (ours, in_one) = both
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert by_torch.state[theirs]["step"] == in_one.state[ours]["step"] == step + 1
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(in_one.state[ours][name], by_torch.state[theirs][name], rtol=1e-5, atol=1e-7)
    assert float((ours.data - first).norm() / first.norm()) > 0.1


@pytest.mark.parametrize("kind", ["radam", "adam"])
def test_in_blocks_a_step_has_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long vector, a short one and one of another shape, with moments and counters as torch keeps them."""
    monkeypatch.setattr(optim, "BLOCK", 64)
    theirs = {"radam": torch.optim.RAdam, "adam": torch.optim.Adam}[kind]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1003,), (64,), (7, 31)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    keys = {"betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    ours, whole = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    both = [(ours, make_optimizer(kind, ours, **keys)), (whole, theirs(whole, lr=0.0, **keys))]  # type: ignore[arg-type]
    for step in range(9):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for parameters, optimizer in both:
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
    for p, other in zip(ours, whole, strict=True):
        assert torch.equal(p, other) and p.shape == other.shape
        assert both[0][1].state[p]["step"] == 9
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(both[0][1].state[p][name], both[1][1].state[other][name])
