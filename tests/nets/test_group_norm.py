"""Group normalization without copies: of 16 bits it makes nothing wider, of channels last nothing contiguous."""

import contextlib

import pytest
import torch
from torch import Tensor

from cmdist.nets.group_norm import GroupNorm
from cmdist.plan import Counter


def made(dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format) -> tuple[GroupNorm, Tensor]:
    norm, generator = GroupNorm(64), torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    x = 1 + torch.randn(2, 64, 16, 16, generator=generator)
    return norm, x.to(dtype).to(memory_format=memory_format)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nothing_is_copied(dtype: torch.dtype, memory_format: torch.memory_format, autocast: bool) -> None:
    """Forward, backward and what lies between: two passes' worth of bytes, and 16 bits are kept as 16 bits."""
    norm, x = made(dtype, memory_format)
    x.requires_grad_()
    kept: list[Tensor] = []
    with (
        Counter() as counter,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),  # type: ignore[func-returns-value]
    ):
        y = norm(x)
        y.backward(torch.ones_like(y))
    assert not {"_to_copy", "clone", "copy_"} & set(counter.touched)
    assert sum(t.nbytes for t in kept) < 1.1 * x.nbytes
    assert y.dtype == dtype and y.is_contiguous(memory_format=memory_format)
    assert x.grad is not None and x.grad.is_contiguous(memory_format=memory_format)


def test_beside_a_cpu_the_kernel_gets_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel of a GPU refuses fp32 weights for 16 bits; tensors without data go the same way."""
    norm, x = made(torch.bfloat16, torch.channels_last)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
    given: list[torch.dtype] = []
    kernel = torch.nn.functional.group_norm

    def noted(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        given.extend(tensor.dtype for tensor in (x, weight, bias))
        return kernel(x, groups, weight, bias, eps)

    monkeypatch.setattr(torch.nn.functional, "group_norm", noted)
    y = norm.to("meta")(x.to("meta"))
    assert given == [torch.bfloat16] * 3
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_gradient_is_that_of_fp32_up_to_a_rounding(dtype: torch.dtype) -> None:
    norm, x = made(dtype)
    towards = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for wide in (False, True):
        given = (x.float() if wide else x).clone().requires_grad_()
        y = norm(given)
        parts = torch.autograd.grad(y, (given, *norm.parameters()), towards.to(y.dtype))
        results.append([y.detach(), *parts])
    for half, full in zip(*results, strict=True):
        # half a unit in the last place, relative to the values: what one rounding may do at most
        assert float((half.float() - full).norm() / full.norm()) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_its_tangent_is_that_of_torchs_own_rule_and_has_a_gradient(memory_format: torch.memory_format) -> None:
    """In value, and in the gradient of a function of the tangent to x and to the weights: what theorem 3 needs."""
    norm, x = made(torch.float64, memory_format)
    norm = norm.double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []

    def rule_of_torch(x: Tensor) -> Tensor:  # which is written for contiguous x
        return torch.nn.functional.group_norm(x.contiguous(), norm.num_groups, norm.weight, norm.bias, norm.eps)

    for rule in (norm, rule_of_torch):
        given = x.clone().requires_grad_()
        y, dy = torch.func.jvp(rule, (given,), (direction,))
        results.append([y, dy, *torch.autograd.grad(dy.sin().sum() + y.cos().sum(), (given, *norm.parameters()))])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)
