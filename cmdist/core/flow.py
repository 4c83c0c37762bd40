"""Flow-matching time: the same curve as ours, rescaled.

There y = (1 - a) image + a noise with a in [0, 1]. Ours is x = image + sigma noise, so a = sigma / (1 + sigma) and
y = x / (1 + sigma). The time r <= a, nearer the data, belongs to our `sigma_next`.
"""

from torch import Tensor

from cmdist.core.noise import expand


def flow_time(sigma: Tensor) -> Tensor:
    """a of sigma."""
    return sigma / (1 + sigma)


def sigma_of(a: Tensor) -> Tensor:
    """sigma of a < 1."""
    return a / (1 - a)


def velocity(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dy/da = E[noise - image | x] from D; from a mean denoiser, MeanFlow's mean velocity u (Geng et al. 2025)."""
    s = expand(sigma, x)
    return (x - (1 + s) * denoised) / s


def denoised_by(x: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """D from the velocity, or the mean denoiser from the mean velocity: y - a velocity."""
    s = expand(sigma, x)
    return (x - s * velocity) / (1 + s)
