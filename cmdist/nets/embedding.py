"""Features of a noise level for a network to learn from."""

import math

import torch
from torch import Tensor


def fourier_features(c_noise: Tensor, width: int, scale: float) -> Tensor:
    """(B,) -> (B, width): cosines, then sines, of 2 pi f c_noise for frequencies f of a normal law of standard
    deviation `scale`.

    Where others draw the frequencies and keep them with the weights (EDM, table 1), these are the law's quantiles; a
    negative one would say what its positive does.
    """
    half = width // 2
    places = 0.5 + (torch.arange(half, dtype=torch.float64, device=c_noise.device) + 0.5) / (2 * half)
    frequencies = (2 * math.pi * scale * torch.special.ndtri(places)).to(c_noise.dtype)
    angles = c_noise[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))
