"""sCM, continuous-time consistency models made stable (Lu & Song 2024, arXiv:2410.11081, Algorithm 1):
distillation and training.

In the paper's words y = cos(theta) x with theta = arctan(sigma / sigma_data), and its network is ours with the sign
turned, so f = cos(theta) y - sin(theta) sigma_data F. Everything is computed from sigma, of which theta at 80 has no
digits left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmdist.core.noise import add_noise, expand, lognormal_sigma
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.tangents import raw_along

Norm = Literal["l2", "rms"]


@dataclass(frozen=True)
class WarmedUp(Draw):
    """A draw and how much of the tangent's second term is in use at its step, 0 ... 1."""

    warm_up: float


@dataclass(frozen=True)
class Scm:
    """E exp(w) |F - F^- - g / (|g| + c)|^2 / D - w, where w(sigma) is trained beside the network (`networks.extra`).

    g = cos(theta) df/dtheta along the teacher's ODE (`distillation`), or along the line between image and noise. Its
    part with the network's own derivative is multiplied by a number that rises from 0 to 1 in `warm_up_steps`. The
    value of the loss says nothing of progress, since F - F^- is 0: look at the told `tangent`, the root mean square of
    g. `norm`: the paper writes |g|, a sum over pixels; public code has it and the root mean square.
    """

    distillation: bool
    sigma_mean: float = -1.0
    sigma_std: float = 1.4
    sigma_data: float = 0.5
    norm: Norm = "l2"
    c: float = 0.1
    warm_up_steps: int = 10_000

    def at(self, step: int) -> At:
        """How far the warm-up is."""
        return {"warm_up": min(1.0, step / self.warm_up_steps) if self.warm_up_steps else 1.0}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> WarmedUp:
        """Log-normal noise levels."""
        sigma = lognormal_sigma(shape[0], self.sigma_mean, self.sigma_std, generator)
        return WarmedUp(sigma, *draw_noise(shape, generator), warm_up=at["warm_up"])

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted squares; the tangent is a constant."""
        assert isinstance(draw, WarmedUp) and networks.extra is not None
        x = add_noise(images, draw.sigma, draw.noise)
        tangent = self.tangent(networks, x, images, labels, draw)
        size = tangent.flatten(1).norm(dim=1) if self.norm == "l2" else tangent.flatten(1).square().mean(1).sqrt()
        with same_dropout(draw.dropout_seed, images.device):
            output = -networks.student.raw(x, draw.sigma, labels)
        goal = output.detach() + tangent / expand(size + self.c, tangent)
        weight = networks.extra(draw.sigma)
        error = (output - goal).square().flatten(1).mean(1)
        root_mean_square = tangent.flatten(1).square().mean(1).sqrt()
        return Losses(weight.exp() * error - weight, {"tangent": root_mean_square, "weight": weight})

    @torch.no_grad()
    def tangent(self, networks: Networks, x: Tensor, images: Tensor, labels: Tensor | None, draw: WarmedUp) -> Tensor:
        """-cos^2 (sigma_data F^- - dy/dtheta) - warm_up (cos sin y + J), where J = cos sin sigma_data dF^-/dtheta."""
        if self.distillation:
            assert networks.teacher is not None, "distillation needs a teacher"
            denoised = networks.teacher(x, draw.sigma, labels)
        else:
            denoised = images
        raw = raw_along(networks.bare_student, x, draw.sigma, denoised, labels, draw.dropout_seed)
        total = (draw.sigma**2 + self.sigma_data**2).sqrt()
        cos, sin = expand(self.sigma_data / total, x), expand(draw.sigma / total, x)
        velocity = (cos**2 * x - denoised) / sin  # dy/dtheta
        first = cos**2 * (-self.sigma_data * raw.value - velocity)
        second = cos**2 * sin * x - self.sigma_data * raw.slope  # cos sin y, and d theta = cos sin d ln sigma
        return -first - draw.warm_up * second
