"""The same questions on a finite data set in many dimensions (digits), by samples: the fixed point of training, and
trained networks beside the exact function.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cmdist.core import exact
from cmdist.core.exact import FiniteDataSet
from cmdist.core.noise import Denoise, add_noise
from cmdist.core.sampling import multistep
from cmdist.report.tables import Row
from cmdist.theory.limit import SIGMA_MAX, SIGMA_MIN, grid

Measure = Callable[[Tensor], float]  # images (B, C, H, W) in [-1, 1] -> Frechet distance to the data


def images_given(data: Tensor, x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """A draw of p(x0 | x) for each x (B, D), x0 one of `data` (K, D)."""
    logits = (x @ data.T - data.square().sum(1) / 2) / sigma**2
    return data[torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]]


class Truth:
    """A finite data set `images` (K, C, H, W) of classes `labels` (K,), asked class by class:
    what is exact about it.
    """

    def __init__(self, images: Tensor, labels: Tensor, steps: int = 60) -> None:
        self._classes = [images[labels == c] for c in range(int(labels.max()) + 1)]
        self._steps = steps

    def by_class(self, x: Tensor, sigma: Tensor, labels: Tensor | None, of: Callable[..., Tensor]) -> Tensor:
        """`of`(images of a class, x, sigma) put together for x (B, C, H, W) of all classes."""
        assert labels is not None
        result = torch.empty_like(x)
        for number, images in enumerate(self._classes):
            here = labels == number
            if bool(here.any()):
                result[here] = of(images, x[here], sigma[here])
        return result

    def denoised(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """E[x_0 | x]."""
        return self.by_class(x, sigma, labels, lambda images, x, sigma: FiniteDataSet(images)(x, sigma))

    def consistency(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The ODE's end, by Heun steps."""
        return self.by_class(
            x,
            sigma,
            labels,
            lambda images, x, sigma: exact.consistency(FiniteDataSet(images), x, sigma, SIGMA_MIN, steps=self._steps),
        )

    def training(self, levels: int, walks: int = 32, seed: int = 3) -> Denoise:
        """Training's fixed point on a grid of so many levels, as a model at these levels:
        the mean of `walks` walks of the chain.
        """
        sigmas, generator = grid(levels), torch.Generator().manual_seed(seed)

        def walk(images: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
            first = min(range(levels), key=lambda i: abs(sigmas[i] - float(sigma[0])))
            at = x.flatten(1).repeat_interleave(walks, 0)
            for now, then in zip(sigmas[first:], sigmas[first + 1 :], strict=False):
                at = then / now * at + (1 - then / now) * images_given(images.flatten(1), at, now, generator)
            return at.view(-1, walks, at.shape[1]).mean(1).view_as(x)

        return lambda x, sigma, labels: self.by_class(x, sigma, labels, walk)


def chain(images: Tensor, counts: Sequence[int], starts: int, walks: int, seed: int = 0) -> list[Row]:
    """Training's fixed point on `images` (K, C, H, W) by `walks` walks of its chain from each of `starts` points of
    p_T, per pixel: the error against the exact function (without the walks' own scatter), and the variances.
    """
    data = images.flatten(1).double()
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, len(data), (starts,), generator=generator)
    start = data[which] + SIGMA_MAX * torch.randn(starts, data.shape[1], generator=generator, dtype=torch.float64)
    denoise = FiniteDataSet(images.double())
    shaped, level = start.view(-1, *images.shape[1:]), torch.full((starts,), SIGMA_MAX, dtype=torch.float64)
    true = exact.consistency(denoise, shaped, level, SIGMA_MIN, steps=200).flatten(1)
    rows: list[Row] = []
    for levels in counts:
        x, sigmas = start.repeat_interleave(walks, 0), grid(levels)
        for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
            ratio = sigma_next / sigma
            x = ratio * x + (1 - ratio) * images_given(data, x, sigma, generator)
        ends = x.view(starts, walks, -1)
        inside = float(ends.var(1).mean())
        # the mean of the walks scatters with inside / walks, which is not f's
        between = float(ends.mean(1).var(0).mean()) - inside / walks
        error = float((ends.mean(1) - true).square().mean()) - inside / walks
        rows.append(
            {
                "levels": levels,
                "starts": starts,
                "walks": walks,
                "rms": max(error, 0.0) ** 0.5,
                "variance_f": between,
                "variance_lost": inside,
                "data": float(data.var(0, correction=0).mean()),
            }
        )
    return rows


def error_over_sigma(
    models: Mapping[str, Denoise], images: Tensor, labels: Tensor, truth: Truth, levels: Sequence[float]
) -> list[Row]:
    """Root mean square difference of a pixel between consistency functions and the data's exact one, at noisy `images`
    (B, C, H, W) of the data, and what the denoised mean would have.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=images.dtype)
    result: dict[str, list[Row]] = {name: [] for name in models}
    for sigma in levels:
        level = torch.full((len(images),), sigma, dtype=images.dtype)
        x = add_noise(images, level, noise)
        end, mean = truth.consistency(x, level, labels), truth.denoised(x, level, labels)
        for name, model in models.items():
            result[name].append(
                {
                    "run": name,
                    "sigma": sigma,
                    "rms": _rms(model(x, level, labels).clamp(-1, 1) - end),
                    "rms_of_mean": _rms(mean - end),
                }
            )
    return [row for rows in result.values() for row in rows]


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def over_tau(
    name: str, model: Denoise, shape: Sequence[int], classes: int, times: Sequence[float], measure: Measure, n: int
) -> list[Row]:
    """Frechet distance of n images of one step (tau 0) and of two with the second at each of `times`;
    the same noises everywhere.
    """
    noises = torch.randn(2, n, *shape, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(n) % classes
    rows: list[Row] = []
    for tau in (0.0, *times):
        steps = torch.tensor([SIGMA_MAX, tau] if tau else [SIGMA_MAX], dtype=torch.float64)
        rows.append(
            {"run": name, "tau": tau, "fd": measure(multistep(model, noises[: len(steps)], steps, SIGMA_MIN, labels))}
        )
    return rows
