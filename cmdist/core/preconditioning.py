"""A network becomes a denoiser or a consistency function: denoised = c_skip x + c_out F(c_in x, c_noise)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cmdist.core.noise import expand


class Scalings(NamedTuple):
    """Factors (B,) of a noise level."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def log_level(sigma: Tensor) -> Tensor:
    """c_noise of EDM (table 1)."""
    return 0.25 * sigma.log()


def angle(sigma_data: float) -> Callable[[Tensor], Tensor]:
    """c_noise of TrigFlow (Lu & Song 2024, arXiv:2410.11081), in [0, pi/2): finite and smooth at sigma = 0 too."""
    return lambda sigma: (sigma / sigma_data).arctan()


def edm_scalings(
    sigma_data: float = 0.5, c_noise: Callable[[Tensor], Tensor] = log_level
) -> Callable[[Tensor], Scalings]:
    """The scalings of a denoiser (EDM, table 1).

    With `angle` they are TrigFlow's in other words: theta = arctan(sigma / sigma_data), y = cos(theta) x, and its F is
    ours with the sign turned.
    """

    def scalings(sigma: Tensor) -> Scalings:
        total = (sigma**2 + sigma_data**2).sqrt()
        return Scalings((sigma_data / total) ** 2, sigma * sigma_data / total, 1 / total, c_noise(sigma))

    return scalings


def flow_scalings(image: bool, c_noise: Callable[[Tensor], Tensor] = log_level) -> Callable[[Tensor], Scalings]:
    """The scalings of a network that gives flow matching's velocity, D = y - a F with y = x / (1 + sigma), a = sigma /
    (1 + sigma) (core/flow.py), or the `image` itself, D = F.
    """

    def scalings(sigma: Tensor) -> Scalings:
        c_in = 1 / (1 + sigma)
        if image:
            return Scalings(torch.zeros_like(sigma), torch.ones_like(sigma), c_in, c_noise(sigma))
        return Scalings(c_in, -sigma * c_in, c_in, c_noise(sigma))

    return scalings


def consistency_scalings(
    sigma_data: float = 0.5, sigma_min: float = 0.002, c_noise: Callable[[Tensor], Tensor] = log_level
) -> Callable[[Tensor], Scalings]:
    """The scalings of a consistency function (paper, appendix C): at sigma_min c_skip = 1 and c_out = 0 exactly."""

    def scalings(sigma: Tensor) -> Scalings:
        # tensors of sigma's own precision: a number / a tensor is computed as number * (1 / tensor), and may miss 1 by
        # a bit
        shifted, variance = sigma - torch.full_like(sigma, sigma_min), torch.full_like(sigma, sigma_data**2)
        total = (sigma**2 + variance).sqrt()
        c_skip = variance / (shifted**2 + variance)
        return Scalings(c_skip, sigma_data * shifted / total, 1 / total, c_noise(sigma))

    return scalings


class Model:
    """A network F with its scalings.

    F takes (c_in x, c_noise, labels), the c_noise of a second noise level where it is called with one, and what else it
    is `told` by name.
    """

    def __init__(self, net: Callable[..., Tensor], scalings: Callable[[Tensor], Scalings]) -> None:
        self.net, self.scalings = net, scalings

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        sigma_next: Tensor | None = None,
        **told: Tensor,
    ) -> Tensor:
        """x (B, C, H, W), sigma (B,), labels (B,) or None, sigma_next (B,) or None -> denoised, as x.

        The network's part is computed in its own precision, the sums in x's.
        """
        scalings = self.scalings(sigma)
        out = self._net(x, scalings, labels, sigma_next, **told)
        return expand(scalings.c_skip, x) * x + expand(scalings.c_out, x) * out

    def raw(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_next: Tensor | None = None) -> Tensor:
        """F alone, in x's precision."""
        return self._net(x, self.scalings(sigma), labels, sigma_next)

    def _net(
        self, x: Tensor, scalings: Scalings, labels: Tensor | None, sigma_next: Tensor | None, **told: Tensor
    ) -> Tensor:
        second = () if sigma_next is None else (self.scalings(sigma_next).c_noise,)
        return self.net(expand(scalings.c_in, x) * x, scalings.c_noise, labels, *second, **told).to(x.dtype)
