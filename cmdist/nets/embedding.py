"""Features of a noise level for a network to learn from."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width), in fp32 or wider: cosines, then sines, of t * 10000^(-i/half) (Vaswani et al. 2017);
    a 0 pads an odd width.
    """
    t = t.to(torch.promote_types(t.dtype, torch.float32))  # bf16 cannot tell t = 1096 from t = 1092
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=t.dtype, device=t.device))
    angles = t[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def positional_features(c_noise: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width), in fp32 or wider: sines, then cosines, of c_noise * 10000^(-i/(half - 1)), whose last is
    1/10000 exactly (DDPM++; Song et al. 2021, appendix H), for an even width of at least 4.
    """
    c_noise = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    half = width // 2
    places = torch.arange(half, dtype=c_noise.dtype, device=c_noise.device) / (half - 1)
    angles = c_noise[:, None] * torch.exp(-math.log(10000) * places)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fourier_features(c_noise: Tensor, width: int, scale: float) -> Tensor:
    """(B,) -> (B, width): cosines, then sines,
    of 2 pi f c_noise for frequencies f of a normal law of standard deviation `scale`.

    Where others draw the frequencies and keep them with the weights (EDM, table 1), these are the law's quantiles; a
    negative one would say what its positive does.
    """
    c_noise = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    half = width // 2
    places = 0.5 + (torch.arange(half, dtype=torch.float64, device=c_noise.device) + 0.5) / (2 * half)
    frequencies = (2 * math.pi * scale * torch.special.ndtri(places)).to(c_noise.dtype)
    angles = c_noise[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class GuidanceEmbedding(nn.Sequential):
    """An MLP of ln w, the scale that a student's teacher was guided by, that adds 0 at initialization."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        for parameter in self[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, scales: Tensor | None, like: Tensor) -> Tensor:  # type: ignore[override]
        """w (B,) above 0, None: 1, and a tensor (B, ...) of the dtype -> (B, width)."""
        logs = like.new_zeros(len(like)) if scales is None else scales.log().to(like.dtype)
        return cast(Tensor, super().forward(logs[:, None]))


class LabelEmbedding(nn.Embedding):
    """A vector (emb,) for each class; with `null` one more for the label -1, of no class, that begins at 0.

    `weight` has the shape of the released weights either way.
    """

    def __init__(self, classes: int, width: int, null: bool) -> None:
        super().__init__(classes, width)
        self.null = nn.Parameter(torch.zeros(width)) if null else None

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) int64 -> (B, width)."""
        if self.null is None:
            return super().forward(labels)
        return torch.where((labels < 0)[:, None], self.null, super().forward(labels.clamp(min=0)))
