"""Noise levels: the Karras grid, draws of sigma or of a pair of neighbours, and weightings.

Grids are descending here; the paper counts upward, so its t_{n+1} is our `sigma` and its t_n our `sigma_next`, nearer
the data.
"""

from collections.abc import Callable
from math import asinh, erf, log, sqrt

import torch
from torch import Tensor

# x (B, C, H, W), sigma (B,), labels (B,) or None -> denoised (B, C, H, W)
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# x (B, C, H, W) at sigma (B,), sigma, labels (B,) or None, sigma_next (B,) -> x at sigma_next
Jump = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
# as Denoise, and sigma_next (B,): what the denoiser is on average along the ODE from sigma to sigma_next
MeanDenoise = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
# sigma (B,), sigma_next (B,) -> (B,)
Weighting = Callable[[Tensor, Tensor], Tensor]
# B, descending sigmas (N,) on the CPU, generator -> (B,) in 0 ... N - 2
IndexDraw = Callable[[int, Tensor, torch.Generator], Tensor]


def karras_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """n >= 2 noise levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho) (EDM eq. 5),
    both ends exact.
    """
    if n < 2:
        raise ValueError(f"a grid needs at least 2 noise levels, not {n}")
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = torch.linspace(top, bottom, n, dtype=torch.float64) ** rho
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas.to(device, dtype)


def karras_level(u: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """The grid between its points: the noise level (B,) of a place u (B,) in 0 ... 1, increasing."""
    bottom, top = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigma: Tensor = (bottom + u * (top - bottom)) ** rho
    return sigma


def karras_growth(sigma: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """d sigma / du of `karras_level` at noise levels (B,): 1 / the density of sigma for uniform u."""
    growth: Tensor = rho * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho)) * sigma ** (1 - 1 / rho)
    return growth


def onto(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the host on `device`;
    the host does not wait for a GPU, which it would for memory that is not pinned.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def unit_pixels(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1, with the same bits on every device: a GPU would multiply by a number's inverse."""
    return pixels.float().div_(pixels.new_full((), 127.5, dtype=torch.float32)).sub_(1.0)


def expand(v: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to multiply x (B, C, H, W)."""
    return v.view(-1, *(1,) * (x.dim() - 1))


def add_noise(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """x + sigma noise for x, noise (B, C, H, W), sigma (B,)."""
    return x + expand(sigma, x) * noise


def lognormal_sigma(n: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """n noise levels with ln sigma ~ N(mean, std^2) (EDM section 5)."""
    return torch.exp(mean + std * torch.randn(n, generator=generator, device=generator.device))


def lognormal_between(n: int, mean: float, std: float, low: float, high: float, generator: torch.Generator) -> Tensor:
    """n noise levels with ln sigma ~ N(mean, std^2) truncated to low <= sigma <= high."""
    below, above = (0.5 * (1 + erf((log(end) - mean) / (sqrt(2) * std))) for end in (low, high))
    u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    normal = sqrt(2) * torch.erfinv(2 * (below + (above - below) * u) - 1)
    return torch.exp(mean + std * normal).clamp(low, high).float()


def student_t_between(
    n: int, df: float, mean: float, std: float, low: float, high: float, generator: torch.Generator
) -> Tensor:
    """n noise levels with ln sigma = mean + std T, T of Student's law, truncated to low <= sigma <= high.

    In s = asinh(T / sqrt(df)) the density is cosh(s)^-df, which a table's trapezoids integrate however small df is.
    """
    first, last = (asinh((log(end) - mean) / (std * sqrt(df))) for end in (low, high))
    s = torch.linspace(first, last, 4097, dtype=torch.float64)
    density = s.cosh() ** -df
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), (density[1:] + density[:-1]).cumsum(0)])
    s, cumulative = onto(s, generator.device), onto(cumulative / cumulative[-1], generator.device)
    u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    i = torch.searchsorted(cumulative, u, right=True).clamp(1, len(s) - 1)
    part = (u - cumulative[i - 1]) / (cumulative[i] - cumulative[i - 1])
    t = sqrt(df) * (s[i - 1] + part * (s[i] - s[i - 1])).sinh()
    return torch.exp(mean + std * t).clamp(low, high).float()


def uniform_index(n: int, sigmas: Tensor, generator: torch.Generator) -> Tensor:
    """n indices i in 0 ... N - 2, each as likely: the pair (sigmas[i], sigmas[i + 1]) (paper, Algorithms 2 and 3)."""
    return torch.randint(0, len(sigmas) - 1, (n,), generator=generator, device=generator.device)


def lognormal_probabilities(sigmas: Tensor, mean: float, std: float) -> Tensor:
    """(N - 1,) probability of each pair:
    the mass of a log-normal between its two noise levels (improved CT, section 3.5).
    """
    cdf = torch.erf((sigmas.double().log() - mean) / (sqrt(2) * std))
    mass = cdf[:-1] - cdf[1:]
    return mass / mass.sum()


def lognormal_index(n: int, sigmas: Tensor, generator: torch.Generator, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """n indices i in 0 ... N - 2 with `lognormal_probabilities`."""
    cumulative = lognormal_probabilities(sigmas, mean, std).cumsum(0)
    u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.searchsorted(onto(cumulative, generator.device), u, right=True).clamp_max(len(sigmas) - 2)


def uniform(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Weight 1 (paper, section 4)."""
    return torch.ones_like(sigma)


def inverse_gap(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Weight 1 / (sigma - sigma_next) (improved CT, section 3.1)."""
    return 1.0 / (sigma - sigma_next)


def truncated_snr(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """max(sigma^-2, 1): the signal-to-noise ratio for data of variance 1, not below 1 (progressive distillation)."""
    return (sigma**-2).clamp_min(1.0)


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """sigma^-2 + sigma_data^-2 (EDM, table 1)."""
    return sigma**-2 + sigma_data**-2
