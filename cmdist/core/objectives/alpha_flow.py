"""alpha-Flow (Zhang et al. 2025, arXiv:2510.20771) at alpha > 0: mean velocities by consistency over a part of the way,
without a derivative of the network.

alpha = 1 is trajectory flow matching, alpha = 1/2 with the student's own velocity the step of shortcut models, and
alpha -> 0 MeanFlow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from cmdist.core.flow import flow_time, sigma_of, velocity
from cmdist.core.noise import add_noise, expand, lognormal_between
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout


@dataclass(frozen=True)
class Sigmoid:
    """alpha of a step: 1 up to `start`, alpha_min from `end` on, between them 1 - sigmoid(gamma (x - 1/2)) at the part
    x of the way; what is nearer to 1 than alpha_min is 1 (public code, where less than alpha_min is 0: MeanFlow).
    """

    start: int
    end: int
    gamma: float
    alpha_min: float

    def __call__(self, step: int) -> float:
        """alpha in [alpha_min, 1]."""
        way = min(max((step - self.start) / max(self.end - self.start, 1), 0.0), 1.0)
        alpha = 1 / (1 + exp(self.gamma * (way - 0.5)))
        return 1.0 if alpha > 1 - self.alpha_min or way == 0 else max(alpha, self.alpha_min)


@dataclass(frozen=True)
class Ways(Draw):
    """From sigma to sigma_next, of which a part alpha is gone by the velocity; where both are equal alpha is 1."""

    sigma_next: Tensor  # (B,), nearer the data
    alpha: Tensor  # (B,)


@dataclass(frozen=True)
class AlphaFlow:
    """alpha S / (sg S + eps), S = mean |u(y, r, a) - sg(alpha v + (1 - alpha) u(y - alpha (a - r) v, r, s))|^2 with s =
    a - alpha (a - r), in flow-matching time (the weight: public code).

    v = noise - image, or with `by_student` its own u(y, a, a) where r < a. ln sigma and ln sigma_next are two draws of
    N(sigma_mean, sigma_std^2), truncated and sorted; for the first `matching` of a micro-batch r = a: flow matching.
    """

    alpha: Callable[[int], float]
    by_student: bool
    matching: float
    sigma_mean: float
    sigma_std: float
    sigma_min: float
    sigma_max: float
    eps: float

    def at(self, step: int) -> At:
        """alpha."""
        return {"alpha": self.alpha(step)}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Ways:
        """Two noise levels for each image."""
        one, other = (
            lognormal_between(shape[0], self.sigma_mean, self.sigma_std, self.sigma_min, self.sigma_max, generator)
            for _ in range(2)
        )
        sigma, sigma_next = torch.maximum(one, other), torch.minimum(one, other)
        matched = torch.arange(shape[0], device=generator.device) < int(shape[0] * self.matching)
        sigma_next = torch.where(matched, sigma, sigma_next)
        alpha = torch.where(sigma_next == sigma, 1.0, at["alpha"])
        return Ways(sigma, *draw_noise(shape, generator), sigma_next=sigma_next, alpha=alpha)

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Weighted squared errors of the mean velocity; they are told unweighted."""
        assert isinstance(draw, Ways)
        sigma, sigma_next, x = draw.sigma, draw.sigma_next, add_noise(images, draw.sigma, draw.noise)
        with torch.no_grad():
            goal = self._goal(networks, x, images, labels, draw)
        with same_dropout(draw.dropout_seed, x.device):
            u = velocity(x, sigma, networks.student(x, sigma, labels, sigma_next))
        error = (u - goal).square().flatten(1).mean(1)
        return Losses(draw.alpha * error / (error.detach() + self.eps), {"error": error})

    def _goal(self, networks: Networks, x: Tensor, images: Tensor, labels: Tensor | None, draw: Ways) -> Tensor:
        """alpha v + (1 - alpha) u(y - alpha (a - r) v, r, s)."""
        sigma, sigma_next, alpha = draw.sigma, draw.sigma_next, expand(draw.alpha, x)
        a, r = flow_time(sigma), flow_time(sigma_next)
        between = sigma_of(a - draw.alpha * (a - r))
        v = draw.noise - images
        x_between = add_noise(images, between, draw.noise)  # y - alpha (a - r) v, whose digits it keeps
        if self.by_student:
            with same_dropout(draw.dropout_seed, x.device):
                own = velocity(x, sigma, networks.bare_student(x, sigma, labels, sigma))
            v = torch.where(expand(sigma_next == sigma, x), v, own)
            y = x / (1 + expand(sigma, x)) - alpha * expand(a - r, x) * v
            x_between = (1 + expand(between, x)) * y
        with same_dropout(draw.dropout_seed, x.device):
            rest = velocity(x_between, between, networks.bare_student(x_between, between, labels, sigma_next))
        return alpha * v + (1 - alpha) * rest
