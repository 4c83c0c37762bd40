"""A weight for each noise level that is learned beside a network (EDM2, Karras et al. 2024, section 2.2 and appendix
B.2).
"""

import torch
from torch import Tensor, nn

from cmdist.nets.embedding import fourier_features

LARGEST = 20.0  # of |w|: it multiplies gradients by exp(w)


class Weighting(nn.Module):
    """w(sigma) of a loss exp(w) error - w, which is smallest where exp(-w) is the mean error at that noise level;
    0 at initialization.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        """(B,) -> (B,), in fp32, between -LARGEST and LARGEST."""
        with torch.autocast(sigma.device.type, enabled=False):
            features = fourier_features(0.25 * sigma.log(), self.width, 1.0).to(self.out.weight.dtype)
            return LARGEST * (self.out(features)[:, 0] / LARGEST).tanh()
