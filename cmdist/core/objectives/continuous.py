"""Consistency distillation and training in continuous time: the limits of many noise levels (paper, appendix B)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmdist.core.distances import Curvature
from cmdist.core.noise import add_noise, expand
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.tangents import denoised_along

Norm = Literal["l1", "l2"]


@dataclass(frozen=True)
class Continuous:
    """The loss of the derivative g = df/dsigma along the teacher's ODE (`distillation`),
    or along the line between image and noise.

    With a `curvature` H of the distance, the target is the student held fixed: the gradient is that of factor f^T H g
    with g and H g constants (Theorem 5; Theorem 6 without a teacher), and the value is factor g^T H g / 2, where the
    paper's has no meaning. Without one, the gradient goes through g itself, of which a `norm` is taken: the mean square
    (Theorem 3) or the mean absolute value (Theorem 4). The factor is lambda / (tau^-1)', and lambda / (tau^-1)'^2 for
    Theorem 3, with tau the Karras grid as a function of the place in it.
    """

    distillation: bool
    level: Callable[[Tensor], Tensor]  # u (B,) in 0 ... 1 -> sigma (B,)
    growth: Callable[[Tensor], Tensor]  # sigma (B,) -> d sigma / du (B,), 1 / (tau^-1)'
    weighting: Callable[[Tensor], Tensor]  # sigma (B,) -> lambda (B,)
    curvature: Curvature | None
    norm: Norm = "l2"

    def at(self, step: int) -> At:
        """Every step is like every other."""
        return {}

    def acts(self, step: int) -> Acts:
        """Nothing but learning happens."""
        return Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Draw:
        """Noise levels whose place in the grid is uniform."""
        sigma = self.level(torch.rand(shape[0], generator=generator, device=generator.device))
        return Draw(sigma, *draw_noise(shape, generator))

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Losses of Theorems 3 to 6."""
        x = add_noise(images, draw.sigma, draw.noise)
        denoised = images
        if self.distillation:
            assert networks.teacher is not None, "distillation needs a teacher"
            with torch.no_grad():
                denoised = networks.teacher(x, draw.sigma, labels)
        through = self.curvature is None
        along = denoised_along(
            networks.bare_student, x, draw.sigma, denoised, labels, draw.dropout_seed, gradient=through
        )
        tangent = along.slope / expand(draw.sigma, x)
        size = tangent.detach().flatten(1).square().mean(1).sqrt()
        growth, weight = self.growth(draw.sigma), self.weighting(draw.sigma)
        if self.curvature is None:
            if self.norm == "l1":
                return Losses(weight * growth * tangent.abs().flatten(1).mean(1), {"tangent": size})
            return Losses(weight * growth**2 * tangent.square().flatten(1).mean(1), {"tangent": size})
        with same_dropout(draw.dropout_seed, images.device):
            output = networks.student(x, draw.sigma, labels)
        bent = self.curvature(output.detach(), tangent)
        pseudo = ((output - output.detach() + tangent / 2) * bent).flatten(1).sum(1)
        return Losses(weight * growth * pseudo, {"tangent": size})
