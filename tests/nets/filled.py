"""Small networks whose zero-initialized layers are filled, so that every path counts, and inputs for them."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from cmdist.nets.unet import UNet

Net = TypeVar("Net", bound=nn.Module)


def filled(net: Net) -> Net:
    """The same network; drawn from torch's own generator."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net


def small(**changes: object) -> UNet:
    """The project's U-Net with about 10,000 parameters."""
    arguments: dict = {
        "image_size": 8,
        "in_channels": 1,
        "model_channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 8,
        "num_classes": 10,
    }
    torch.manual_seed(0)
    return filled(UNet(**(arguments | changes)))


def inputs(channels: int = 1, size: int = 8, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, c_noise, labels."""
    x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(-1.5, 1.0, batch), torch.arange(batch)
