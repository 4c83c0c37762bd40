"""Group normalization that neither copies nor reorders what it is given, in any precision and memory format."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

_HALVES = (torch.bfloat16, torch.float16)


class GroupNorm(nn.GroupNorm):
    """Group normalization with sums in at least fp32, given back in x's dtype: 32 groups as in ADM, fewer where one
    would have under 4 channels.
    """

    def __init__(self, channels: int) -> None:
        most = max(1, min(32, channels // 4))
        super().__init__(next(n for n in range(most, 0, -1) if channels % n == 0), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, in x's memory format."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        given = x
        if _carries_tangent(x):  # its derivative is written for one dtype and contiguous x
            x = x.contiguous().to(weight.dtype)
        elif x.dtype in _HALVES and x.device.type != "cpu":  # a CPU's kernel alone takes two dtypes at once
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        # Autocast would copy 16 bits to 32 on GPUs, where the kernel sums in fp32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        # On GPUs it is contiguous; the convolution behind goes by its input's format.
        return y.to(given.dtype, memory_format=_memory_format(given))


def pixel_norm(x: Tensor) -> Tensor:
    """(B, C, H, W) over the root mean square of its channels at each place; in fp32, given back in x's dtype."""
    wide = x.float() if x.dtype in _HALVES else x
    return (wide / (wide.square().mean(1, keepdim=True) + 1e-8).sqrt()).to(x.dtype)


def _carries_tangent(x: Tensor) -> bool:
    """Whether x is differentiated in forward mode; compiled networks never are."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
