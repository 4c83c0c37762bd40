"""Truth: data distributions whose denoiser E[x_0 | x] is known in closed form,
as ordinary callables (x, sigma, labels) -> denoised.

They are the oracle of the tests, and `FiniteDataSet` is a teacher for small data (`teacher: exact`). With the denoiser
the probability-flow ODE is known, and with that the consistency function: in closed form for a Gaussian, else to any
precision.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.noise import Denoise, expand
from cmdist.core.preconditioning import Model, Scalings
from cmdist.core.solvers import heun_step


@dataclass(frozen=True)
class Gaussian:
    """Data ~ N(mean, std^2 I); `mean` (C, H, W) or a number."""

    mean: Tensor | float
    std: float

    def __call__(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_next: Tensor | None = None
    ) -> Tensor:
        """(std^2 x + sigma^2 mean) / (std^2 + sigma^2); with sigma_next (B,) the mean denoiser from sigma to there.

        That one is mean + (x - mean) std^2 (sigma + sigma_next) / (A (sigma A_next + sigma_next A)), A^2 = std^2 +
        sigma^2: what `solvers.mean_jump` needs to land where `consistency` does, without their cancellation.
        """
        s, v = expand(sigma, x), self.std**2
        if sigma_next is None:
            return (v * x + s**2 * self._mean(x)) / (v + s**2)
        t = expand(sigma_next, x)
        here, there = (v + s**2).sqrt(), (v + t**2).sqrt()
        return self._mean(x) + (x - self._mean(x)) * v * (s + t) / (here * (s * there + t * here))

    def consistency(self, x: Tensor, sigma: Tensor, sigma_min: float | Tensor) -> Tensor:
        """The ODE's solution at sigma_min, a number or (B,), from x at sigma: mean + (x - mean) sqrt((std^2 +
        sigma_min^2) / (std^2 + sigma^2)).
        """
        end = expand(sigma_min, x) if isinstance(sigma_min, Tensor) else sigma_min
        shrink = ((self.std**2 + end**2) / (self.std**2 + expand(sigma, x) ** 2)).sqrt()
        return self._mean(x) + (x - self._mean(x)) * shrink

    def _mean(self, x: Tensor) -> Tensor | float:
        return self.mean.to(x) if isinstance(self.mean, Tensor) else self.mean


@dataclass(frozen=True)
class GaussianMixture:
    """Data ~ sum_k weights[k] N(means[k], std^2 I); `means` (K, C, H, W), `weights` (K,) positive."""

    means: Tensor
    std: float
    weights: Tensor

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The components' denoisers, weighted by how likely each is given x."""
        means = self.means.flatten(1).to(x)
        variance = (self.std**2 + sigma**2)[:, None]
        distances = (x.flatten(1)[:, None] - means[None]).square().sum(2)
        likely = (self.weights.to(x).log() - distances / (2 * variance)).softmax(1)
        mean = (likely @ means).view_as(x)
        s = expand(sigma, x)
        return (self.std**2 * x + s**2 * mean) / (self.std**2 + s**2)


class FiniteDataSet:
    """Data = one of `images` (K, C, H, W), each as likely,
    and with `labels` (K,) one of the class that is asked for; -1 asks for no class.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self._shape = images.shape[1:]
        self._flat = images.flatten(1)
        self._half_norms = self._flat.square().sum(1) / 2
        self._labels = labels

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images, weighted by softmax of -|x - image|^2 / (2 sigma^2) (EDM eq. 57)."""
        data = self._flat.to(x)
        # -|x - y|^2 / 2 without the part that is the same for all y: no (B, K, C, H, W) is ever made
        logits = (x.flatten(1) @ data.T - self._half_norms.to(x)) / sigma[:, None] ** 2
        if self._labels is not None and labels is not None:
            other = (self._labels.to(labels.device)[None] != labels[:, None]) & (labels >= 0)[:, None]
            logits = logits.masked_fill(other, -torch.inf)
        return (logits.softmax(1) @ data).view(-1, *self._shape)


def consistency(
    denoise: Denoise,
    x: Tensor,
    sigma: Tensor,
    sigma_min: float | Tensor,
    labels: Tensor | None = None,
    steps: int = 2000,
    rho: float = 7.0,
) -> Tensor:
    """The consistency function of any denoiser: the ODE from x at sigma (B,) to sigma_min, a number or (B,), by `steps`
    Heun steps in float64.
    """
    wide, start = x.double(), sigma.double()
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=x.device)[:, None]
    grid = (
        start ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - start ** (1 / rho))
    ) ** rho  # (steps + 1, B), each image its own
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        wide = heun_step(denoise, wide, now, labels, then)
    return wide.to(x.dtype)


def mean_denoiser(
    denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None = None, steps: int = 2000
) -> Tensor:
    """The mean of any denoiser along its ODE from x at sigma (B,) to sigma_next (B,), below it; see `consistency`."""
    end = consistency(denoise, x, sigma, sigma_next, labels, steps)
    s, t = expand(sigma, x), expand(sigma_next, x)
    return (s * end - t * x) / (s - t)


class Known(Model):
    """The model that is `function` of (x, sigma, labels, sigma_next where there is one): its network takes the scalings
    back. `sigma_of` is the noise level of what the network is told of it.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        scalings: Callable[[Tensor], Scalings],
        sigma_of: Callable[[Tensor], Tensor],
    ) -> None:
        def net(u: Tensor, c_noise: Tensor, labels: Tensor | None, *second: Tensor) -> Tensor:
            sigma = sigma_of(c_noise)
            c_skip, c_out, c_in = (expand(each, u) for each in scalings(sigma)[:3])
            x = u / c_in
            return (function(x, sigma, labels, *map(sigma_of, second)) - c_skip * x) / c_out

        super().__init__(net, scalings)
        self._function = function

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        sigma_next: Tensor | None = None,
        **told: Tensor,
    ) -> Tensor:
        """The function itself, at levels too where c_out is 0."""
        value: Tensor = self._function(x, sigma, labels, *(() if sigma_next is None else (sigma_next,)))
        return value


def level_of(told: str, sigma_data: float) -> Callable[[Tensor], Tensor]:
    """The inverse of what a network is told of sigma: `log` or `angle`."""
    return lambda c_noise: sigma_data * c_noise.tan() if told == "angle" else (4 * c_noise).exp()
