"""How a network's output changes along a path of noisy images: forward-mode derivatives of the bare student.

A path has dx/dsigma = (x - denoised) / sigma: the probability-flow ODE where `denoised` is a denoiser's, and the line
between image and noise where it is the image itself, since x - image = sigma noise. Derivatives are taken along ln
sigma, in which all of it is of moderate size at every noise level. The network's input c_in x moves as (c_in x)' x -
c_in denoised; written so, with the factors in float64, nothing large cancels at sigma = 80.

Unless a gradient is asked for the weights are constants here. Nothing goes through the engine, and no compiled network
is called: forward mode knows neither.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmdist.core.guidance import Told
from cmdist.core.noise import expand
from cmdist.core.objectives.base import same_dropout
from cmdist.core.preconditioning import Model, Scalings


class Along(NamedTuple):
    """A value (B, C, H, W) and its derivative d / d ln sigma along a path."""

    value: Tensor
    slope: Tensor


def raw_along(
    model: Model,
    x: Tensor,
    sigma: Tensor,
    denoised: Tensor,
    labels: Tensor | None,
    dropout_seed: int,
    sigma_next: Tensor | None = None,
    gradient: bool = False,
) -> Along:
    """The network's own output F along the path through x (B, C, H, W) at sigma (B,); a second noise level stays."""
    now, slope = _scalings_along(model.scalings, sigma, x.dtype)
    moved = expand(now.c_in + slope.c_in, x) * x - expand(now.c_in, x) * denoised
    second = () if sigma_next is None else (model.scalings(sigma_next).c_noise,)

    def net(u: Tensor, c_noise: Tensor) -> Tensor:
        return _eager(model.net)(u, c_noise, labels, *second).to(x.dtype)

    with torch.set_grad_enabled(gradient):
        return _forward(net, (expand(now.c_in, x) * x, now.c_noise), (moved, slope.c_noise), dropout_seed)


def denoised_along(
    model: Model,
    x: Tensor,
    sigma: Tensor,
    denoised: Tensor,
    labels: Tensor | None,
    dropout_seed: int,
    sigma_next: Tensor | None = None,
    gradient: bool = False,
) -> Along:
    """What the model returns, along the same path; with `gradient` to the weights, if that is asked for."""
    raw = raw_along(model, x, sigma, denoised, labels, dropout_seed, sigma_next, gradient)
    now, slope = _scalings_along(model.scalings, sigma, x.dtype)
    value = expand(now.c_skip, x) * x + expand(now.c_out, x) * raw.value
    skipped = expand(now.c_skip + slope.c_skip, x) * x - expand(now.c_skip, x) * denoised
    return Along(value, skipped + expand(slope.c_out, x) * raw.value + expand(now.c_out, x) * raw.slope)


def denoised_along_next(
    model: Model,
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    dropout_seed: int,
    sigma_next: Tensor,
    gradient: bool = False,
) -> Along:
    """What the model returns, and its derivative d / d ln sigma_next where x and sigma stay; with `gradient` to the
    weights, if that is asked for.
    """
    now = model.scalings(sigma)
    second, slope = _scalings_along(model.scalings, sigma_next, x.dtype)

    def net(c_noise: Tensor) -> Tensor:
        return _eager(model.net)(expand(now.c_in, x) * x, now.c_noise, labels, c_noise).to(x.dtype)

    with torch.set_grad_enabled(gradient):
        raw = _forward(net, (second.c_noise,), (slope.c_noise,), dropout_seed)
    c_out = expand(now.c_out, x)
    return Along(expand(now.c_skip, x) * x + c_out * raw.value, c_out * raw.slope)


def _forward(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], directions: tuple[Tensor, ...], dropout_seed: int
) -> Along:
    """The attention that has a rule for forward mode is torch's plainest."""
    with same_dropout(dropout_seed, inputs[0].device), sdpa_kernel(SDPBackend.MATH):
        return Along(*torch.func.jvp(function, inputs, directions))


def _scalings_along(
    scalings: Callable[[Tensor], Scalings], sigma: Tensor, dtype: torch.dtype
) -> tuple[Scalings, Scalings]:
    """The factors (B,) of sigma, and their derivatives d / d ln sigma."""
    wide = sigma.double()
    pair = torch.func.jvp(lambda s: tuple(scalings(s)), (wide,), (wide,))
    return tuple(Scalings(*(each.to(dtype) for each in part)) for part in pair)  # type: ignore[return-value]


def _eager(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if isinstance(net, Told):
        return net.eager
    return net.forward if isinstance(net, nn.Module) else net
