"""Averages by half-life, and the target network that is called in less precision, which follows the fp32 one."""

import copy

import pytest
import torch
from torch import nn

from cmdist.checkpoints.layout import Layout, Piece
from cmdist.train.averages import Averages, Copy, decay_at


class Weights:
    """One weight, as an engine gives it."""

    start, module = 0, nn.Linear(1, 1)

    def __init__(self, value: float) -> None:
        self.tensor = torch.full((3,), value, dtype=torch.float64)

    def slice(self, kind: str, device: torch.device) -> torch.Tensor:
        return self.tensor.clone()

    def pieces(self, kind: str) -> list[Piece]:
        return [Piece(0, self.tensor)]


@pytest.mark.parametrize("batch", [1, 8, 40])
def test_half_of_it_is_forgotten_after_its_half_life_whatever_the_batch(batch: int) -> None:
    weights = Weights(0.0)
    averages = Averages(weights, (0.75, 80.0), batch, None)  # type: ignore[arg-type]
    weights.tensor += 1.0
    for step in range(240 // batch):
        averages.update(step)
        seen = (step + 1) * batch
        torch.testing.assert_close(averages.slices[80.0], torch.full_like(weights.tensor, 1 - 0.5 ** (seen / 80)))
        torch.testing.assert_close(averages.slices[0.75], torch.full_like(weights.tensor, 1 - 0.75 ** (step + 1)))


def test_a_ramp_up_forgets_the_start() -> None:
    """EDM's: the half-life is at most so many times the images before the step; the first one keeps nothing."""
    kept = [decay_at(500_000, step, 512, 0.05) for step in (0, 1, 100, 19_531, 19_532, 10**9)]
    assert kept[:3] == [0.0, 0.5**20, 0.5 ** (1 / 5)] and kept[3] < kept[4] == kept[5] == 0.5 ** (512 / 500_000)
    assert decay_at(0.9999, 0, 512, 0.05) == 0.9999


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
