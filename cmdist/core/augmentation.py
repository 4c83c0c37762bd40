"""EDM's augmentation (Karras et al. 2022, appendix F.2): a picture is changed, and the network is told how, so that the
changes do not become a part of what it samples.

Pictures are resampled by bicubic interpolation with mirrored borders, where EDM filters by wavelets; so the highest
frequencies of turned and scaled pictures differ from its.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TOLD = 9  # numbers that a network is told
LOG2_SCALE = 0.2  # a standard deviation of scaling, and of stretching one way against the other, in powers of two
FINER = 3  # places of interpolation for each pixel's side; odd, so that the middle one is the pixel's
SHIFT = 0.125  # a standard deviation of shifts, in sides of the picture


def draw(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """Changes (n, 8): mirrored left to right, upside down (0 or 1), scale, turn, axis and size of a stretch, shifts
    (2).

    Each of the six but the first happens with `probability`, and is 0 else; a picture is mirrored left to right half of
    the time. Turns and axes are uniform in [-pi, pi), the others unit normal.
    """
    device = generator.device
    coins = torch.rand(n, 2, generator=generator, device=device) < 0.5
    angles = (2 * torch.rand(n, 2, generator=generator, device=device) - 1) * math.pi
    normal = torch.randn(n, 4, generator=generator, device=device)
    happens = torch.rand(n, 5, generator=generator, device=device) < probability
    upside, scaled, turned, stretched, shifted = happens.unbind(1)
    return torch.stack(
        [
            coins[:, 0].float(),
            (coins[:, 1] & upside).float(),
            normal[:, 0] * scaled,
            angles[:, 0] * turned,
            angles[:, 1] * stretched,
            normal[:, 1] * stretched,
            normal[:, 2] * shifted,
            normal[:, 3] * shifted,
        ],
        dim=1,
    )


def told(changes: Tensor) -> Tensor:
    """What the network is told (n, 9) of changes (n, 8); all 0: nothing was changed."""
    mirrored, upside, scale, turn, axis, stretch, right, down = changes.unbind(1)
    parts = [turn.cos() - 1, turn.sin(), stretch * axis.cos(), stretch * axis.sin()]
    return torch.stack([mirrored, upside, scale, *parts, right, down], dim=1)


@torch.no_grad()
def changed(images: Tensor, changes: Tensor) -> Tensor:
    """Square images (n, C, H, H) after changes (n, 8): mirrored, scaled, turned, stretched and shifted, in this order.
    Those that are only mirrored are not resampled.
    """
    mirrored, upside = (changes[:, i, None, None, None] > 0 for i in (0, 1))
    images = torch.where(mirrored, images.flip(3), images)
    images = torch.where(upside, images.flip(2), images)
    grid = F.affine_grid(_places(changes).to(images.dtype), list(images.shape), align_corners=False)
    # bicubic (a = -1/2, which torch has with antialias only), to a third of a pixel, whose middle is the pixel's own
    finer = F.interpolate(images, scale_factor=FINER, mode="bicubic", antialias=True)
    moved = F.grid_sample(finer, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return torch.where((changes[:, 2:] != 0).any(1)[:, None, None, None], moved, images)


def _places(changes: Tensor) -> Tensor:
    """The map (n, 2, 3) from a place in the result to where it comes from, x to the right and y down in half sides."""
    _, _, scale, turn, axis, stretch, right, down = changes.unbind(1)
    smaller = torch.exp2(-LOG2_SCALE * scale)
    along = torch.exp2(-LOG2_SCALE * stretch)
    back = _rotation(turn) @ _rotation(axis) @ _diagonal(along, 1 / along) @ _rotation(-axis)
    back = smaller[:, None, None] * back
    shift = 2 * SHIFT * torch.stack([right, down], dim=1)[:, :, None]
    return torch.cat([back, -(back @ shift)], dim=2)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([first, second], 1))
