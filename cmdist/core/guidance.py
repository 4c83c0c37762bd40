"""Guidance of a denoiser: wrappers that are denoisers themselves, so that solvers and distillation take them as any.

All of them are D_w = B + w (D - B) for a baseline B, with w = 1 outside of the interval of noise levels (Kynkaanniemi
et al. 2024, arXiv:2404.07724). Each evaluation is guided by its own noise level, the second one of Heun's step too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, log

import torch
from torch import Tensor, nn

from cmdist.core.noise import Denoise, expand
from cmdist.core.preconditioning import Model

NULL = -1  # the label of no class
# x (B, C, H, W), sigma (B,), labels (B,) -> log p(label | x, sigma) (B,)
LogLikelihood = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Guidance:
    """The scale w, or the `range` that one is drawn from for each image, and the noise levels low < sigma <= high at
    which it holds.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = inf
    range: tuple[float, float] | None = None

    @property
    def described(self) -> dict[str, object]:
        """For a record of what was sampled."""
        return {"scale": self.scale, "low": self.low, "high": None if self.high == inf else self.high}

    @property
    def none(self) -> bool:
        """Whether it changes nothing."""
        return self.scale == 1.0 and self.range is None

    @property
    def fixed(self) -> "Guidance":
        """None at all, if the scale is drawn."""
        return Guidance() if self.range else self

    def at(self, sigma: Tensor) -> Tensor:
        """w (B,) at noise levels (B,)."""
        return self._within(sigma, torch.full_like(sigma, self.scale))

    def _within(self, sigma: Tensor, scales: Tensor) -> Tensor:
        within = (sigma > self.low) & (sigma <= self.high)
        return torch.where(within, scales, torch.ones_like(sigma))

    def drawn(self, n: int, generator: torch.Generator) -> "Drawn":
        """With scales for n images, log-uniform in the range."""
        assert self.range is not None
        low, high = map(log, self.range)
        share = torch.rand(n, generator=generator, device=generator.device)
        return Drawn(self.scale, self.low, self.high, self.range, (low + (high - low) * share).exp())


@dataclass(frozen=True)
class Drawn(Guidance):
    """With a scale for each image (B,); of the points of several trajectories, one trajectory's after the other's."""

    scales: Tensor = field(default_factory=lambda: torch.ones(1))

    @property
    def none(self) -> bool:
        """It always does something."""
        return False

    def at(self, sigma: Tensor) -> Tensor:
        """w at noise levels (k B,)."""
        return self._within(sigma, self.scales.to(sigma.dtype).repeat(len(sigma) // len(self.scales)))

    def told(self, model: Model) -> Model:
        """The model, told of the scale of each image."""
        return Model(Told(model.net, self.scales), model.scalings)


class Told:
    """A network that is told the scale of each image (B,) by name; of k B, one B after the other."""

    def __init__(self, net: Callable[..., Tensor], scales: Tensor) -> None:
        self.net, self.scales = net, scales

    def __call__(self, x: Tensor, *inputs: Tensor | None, **told: Tensor) -> Tensor:
        """As the network."""
        return self.net(x, *inputs, guidance=self.scales.repeat(len(x) // len(self.scales)), **told)

    @property
    def eager(self) -> "Told":
        """Not compiled."""
        return Told(self.net.forward if isinstance(self.net, nn.Module) else self.net, self.scales)


def _between(baseline: Tensor, denoised: Tensor, weight: Tensor) -> Tensor:
    w = expand(weight, denoised)
    return torch.where(w == 1, denoised, baseline + w * (denoised - baseline))


def classifier_free(denoise: Denoise, guidance: Guidance) -> Denoise:
    """Against the same network without a class (Ho & Salimans 2022, arXiv:2207.12598), whose label is NULL: D_w =
    D_null + w (D_c - D_null). Both in one pass of twice the batch; w = 1 is `denoise` itself.
    """
    if guidance.none:
        return denoise

    def guided(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        # without labels both are the same, and cost as much
        both = None if labels is None else torch.cat([labels, torch.full_like(labels, NULL)])
        denoised, baseline = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return _between(baseline, denoised, guidance.at(sigma))

    return guided


def auto(denoise: Denoise, worse: Denoise, guidance: Guidance) -> Denoise:
    """Against a worse version of the model (autoguidance, Karras et al. 2024, arXiv:2406.02507), with the same labels:
    D_w = D_worse + w (D - D_worse). w = 1 is `denoise` itself.
    """
    if guidance.none:
        return denoise

    def guided(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return _between(worse(x, sigma, labels), denoise(x, sigma, labels), guidance.at(sigma))

    return guided


def classifier(denoise: Denoise, likelihood: LogLikelihood, guidance: Guidance, conditional: bool = False) -> Denoise:
    """By the gradient of a classifier of noisy images (Dhariwal & Nichol 2021): D + v sigma^2 grad log p(c | x, sigma),
    in fp32. v is w for an unconditional `denoise`, for which w = 0 would be no guidance, and w - 1 for a conditional
    one. A classifier that was trained on x / sqrt(1 + sigma^2) divides by that itself: the gradient is that by x.
    """

    def guided(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            leaf = x.detach().float().requires_grad_(True)
            (slope,) = torch.autograd.grad(likelihood(leaf, sigma, labels).float().sum(), leaf)
        strength = guidance.at(sigma) - (1.0 if conditional else 0.0)
        denoised = denoise(x, sigma, labels if conditional else None)
        return denoised + (expand(strength * sigma**2, x) * slope).to(denoised.dtype)

    return guided
