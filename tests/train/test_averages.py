"""The target network that is called in less precision: it follows the fp32 one, which stays the truth."""

import copy

import torch
from torch import nn

from cmdist.checkpoints.layout import Layout
from cmdist.train.averages import Copy


class Net(nn.Module):
    """A product that may be kept in 16 bits, and a bias that stays in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.bias = nn.Linear(5, 3, bias=False), nn.Parameter(torch.randn(3))

    def lower(self) -> "Net":
        self.product.bfloat16()
        return self


def make() -> tuple[Net, Copy]:
    torch.manual_seed(0)
    student = Net()
    return student, Copy(student, copy.deepcopy(student).requires_grad_(False).lower())


def rounded(target: Copy) -> bool:
    pairs = zip(target.called.parameters(), target.module.parameters(), strict=True)
    return all(torch.equal(ours, truth.to(ours.dtype)) for ours, truth in pairs)


def test_it_moves_by_less_than_its_own_digits() -> None:
    """0.9999 of a weight and 0.0001 of another one is the same weight in bf16, but 10,000 such steps are not."""
    student, target = make()
    assert rounded(target)
    start = target.module.product.weight.clone()
    student.product.weight.data += 1.0
    for _ in range(10_000):
        target.update(student, 0.9999)
    moved = (target.called.product.weight.float() - start).mean()
    assert abs(float(moved) - (1 - 0.9999**10_000)) < 0.01
    assert rounded(target)


def test_loading_reaches_it(monkeypatch) -> None:
    _, target = make()
    monkeypatch.setattr("cmdist.train.averages.all_slices", lambda values, start: [(start, values)])
    values = torch.randn(18)
    target.load(Layout.of(Net()), 0, values)
    assert torch.equal(torch.cat([p.view(-1) for p in target.module.parameters()]), values)
    assert rounded(target)


def test_what_is_not_rounded_has_one_memory_with_the_truth() -> None:
    student, target = make()
    assert target.called.bias.data_ptr() == target.module.bias.data_ptr()
    assert target.called.product.weight.dtype == torch.bfloat16 and target.module.product.weight.dtype == torch.float32
    alone = Copy(student)
    assert alone.called is alone.module
