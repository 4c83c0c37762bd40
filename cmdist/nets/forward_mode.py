"""Layers that are linear in their input, for forward-mode differentiation: the tangent goes through the same layer.

torch's own rules multiply the input by the weights' tangent too, which is 0 where only inputs move: half again the
work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


def tangent_of(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x and its tangent, None where it carries none; compiled networks are never differentiated in forward mode."""
    if torch.compiler.is_compiling():
        return x, None
    pair = forward_ad.unpack_dual(x)
    return pair.primal, pair.tangent


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As torch's function, for weights without a tangent."""
    primal, tangent = tangent_of(x)
    if tangent is None:
        return F.linear(x, weight, bias)
    return forward_ad.make_dual(F.linear(primal, weight, bias), F.linear(tangent, weight))


class Linear(nn.Linear):
    """As torch's layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """As torch's layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        primal, tangent = tangent_of(x)
        if tangent is None:
            return super().forward(x)
        return forward_ad.make_dual(super().forward(primal), self._conv_forward(tangent, self.weight, None))
