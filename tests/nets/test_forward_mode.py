"""Linear layers in forward mode: torch's derivatives, at two passes' cost."""

import pytest
import torch
from torch import nn

from cmdist.nets.forward_mode import Conv2d, Linear
from cmdist.plan import Counter


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_value_and_tangent_are_torchs_and_cost_two_passes(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        ours, theirs = Conv2d(4, 8, 3, stride=2, padding=1).double(), nn.Conv2d(4, 8, 3, stride=2, padding=1).double()
        x, direction = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64)
    else:
        ours, theirs = Linear(4, 8).double(), nn.Linear(4, 8).double()
        x, direction = torch.randn(2, 5, 4, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        y, dy = torch.func.jvp(layer, (x,), (direction,))
        results.append([y, dy, *torch.autograd.grad(y.sin().sum() + dy.cos().sum(), layer.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)
    with Counter() as once, torch.no_grad():
        plain = ours(x)
    with Counter() as twice, torch.no_grad():
        torch.func.jvp(ours, (x,), (direction,))
    assert twice.flops == 2 * once.flops
    assert torch.equal(plain, theirs(x))
