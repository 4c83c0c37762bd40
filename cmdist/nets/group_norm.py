"""Group normalization that neither copies nor reorders what it is given, in any precision and memory format."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from cmdist.errors import ConfigError
from cmdist.nets.forward_mode import tangent_of

_HALVES = (torch.bfloat16, torch.float16)


class GroupNorm(nn.GroupNorm):
    """Group normalization with sums in at least fp32, given back in x's dtype: 32 groups as in ADM, fewer where one
    would have under 4 channels, unless told otherwise.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        most = max(1, min(32, channels // 4))
        super().__init__(next(n for n in range(most, 0, -1) if channels % n == 0), channels, eps)

    def take(self, groups: int) -> None:
        """Normalise in so many groups. Raises ConfigError if they do not divide the channels."""
        if self.num_channels % groups:
            raise ConfigError(
                f"network.norm_groups {groups} does not divide the {self.num_channels} channels of a normalization"
            )
        self.num_groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, in x's memory format."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if tangent_of(x)[1] is not None:
            return self._dual(x.contiguous().to(weight.dtype)).to(x.dtype, memory_format=_memory_format(x))
        if x.dtype in _HALVES and x.device.type != "cpu":  # a CPU's kernel alone takes two dtypes at once
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        # Autocast would copy 16 bits to 32 on GPUs, where the kernel sums in fp32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        # On GPUs it is contiguous; the convolution behind goes by its input's format.
        return y.to(x.dtype, memory_format=_memory_format(x))

    def _dual(self, x: Tensor) -> Tensor:
        """The output and its tangent for a contiguous x of the weights' dtype, which carries one: five times as fast as
        the rule that torch has, and known to tensors without data too.
        """
        primal, tangent = tangent_of(x)
        assert tangent is not None
        b, groups = len(x), self.num_groups
        mean = primal.reshape(b, groups, -1).mean(2)
        centred = primal.reshape(b, groups, -1) - mean[:, :, None]
        moved = tangent.reshape(b, groups, -1)
        inverse = (centred.square().mean(2) + self.eps).rsqrt()
        bend = -(centred * moved).mean(2) * inverse**3

        def each_channel(of_group: Tensor) -> Tensor:
            return (of_group[:, :, None] * self.weight.view(1, groups, -1)).view(b, -1, *(1,) * (x.dim() - 2))

        # d of (x - mean) / std: both change with x
        slope = torch.addcmul(each_channel(-inverse * moved.mean(2)), centred.view_as(primal), each_channel(bend))
        slope = torch.addcmul(slope, tangent, each_channel(inverse))
        with torch.autocast(x.device.type, enabled=False):
            return forward_ad.make_dual(F.group_norm(primal, groups, self.weight, self.bias, self.eps), slope)


def regroup(net: nn.Module, groups: int) -> None:
    """Give each normalization of a network so many groups. Raises ConfigError as `GroupNorm.take`."""
    for norm in _norms(net):
        norm.take(groups)


def narrow(net: nn.Module) -> list[int]:
    """The numbers of groups of its normalizations that are not ADM's 32."""
    return sorted({norm.num_groups for norm in _norms(net)} - {32})


def _norms(net: nn.Module) -> list[GroupNorm]:
    return [module for module in net.modules() if isinstance(module, GroupNorm)]


def pixel_norm(x: Tensor) -> Tensor:
    """(B, C, H, W) over the root mean square of its channels at each place; in fp32, given back in x's dtype."""
    wide = x.float() if x.dtype in _HALVES else x
    return (wide / (wide.square().mean(1, keepdim=True) + 1e-8).sqrt()).to(x.dtype)


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
