"""Mean and covariance of features that stream by, and the Frechet distance between two Gaussians."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.errors import DataError


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and unbiased covariance (D,D), float64 on the CPU, of the features of n images (0: nobody knows how many)."""

    n: int
    mean: Tensor
    covariance: Tensor


class Moments:
    """Mean and scatter of features, added piece by piece (Chan, Golub and LeVeque 1983); memory does not grow with the images.

    The last bits depend on how the features are cut into pieces, so the caller cuts them in one way whatever the number of ranks.
    """

    def __init__(self, dimensions: int) -> None:
        self.n = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self.scatter = torch.zeros((dimensions, dimensions), dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    @classmethod
    def of(cls, n: int, mean: Tensor, scatter: Tensor) -> "Moments":
        """Those that another one had."""
        made = cls(len(mean))
        made.n, made.mean, made.scatter = n, mean.clone(), scatter.clone()
        return made

    def add(self, features: Tensor) -> None:
        """Add features (B,D) of any precision."""
        if not len(features):
            return
        x = features.to(device="cpu", dtype=torch.float64)
        mean = x.mean(dim=0)
        centred = x - mean
        self._merge(len(x), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Add what another one has seen."""
        if other.n:
            self._merge(other.n, other.mean, other.scatter)

    def _merge(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total, shift = self.n + n, mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(shift, shift, alpha=self.n * n / total)
        self.mean += shift * (n / total)
        self.n = total

    def statistics(self) -> Statistics:
        """What they amount to. Raises DataError for a single image."""
        if self.n < 2:
            raise DataError(f"{self.n} images have no covariance")
        return Statistics(self.n, self.mean.clone(), self.scatter / (self.n - 1))


def check_count(n: int, dimensions: int) -> None:
    """Raise DataError if n images are too few for a covariance of `dimensions` features."""
    if n < 2 * dimensions:
        raise DataError(
            f"{n} images are too few for a Frechet distance in {dimensions} features: at least {2 * dimensions} are needed, "
            f"{max(5000, 50_000 * (dimensions > 512))} are usual"
        )


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), squared 2-Wasserstein distance of two Gaussians (Heusel et al. 2017, eq. 6).

    With C = R R^T from symmetric eigenvalues, the last trace is the sum of the singular values of R_a^T R_b. Nothing has to be
    positive definite, no root of a general matrix is taken, and singular covariances lose no digits. Raises DataError if either is of
    other dimensions, or of too few images for them.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    for statistics in (a, b):
        if statistics.n:
            check_count(statistics.n, len(a.mean))
    shift = a.mean - b.mean
    cross = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return float(shift @ shift + torch.trace(a.covariance) + torch.trace(b.covariance) - 2 * cross)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
