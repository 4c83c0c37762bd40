"""Mean and covariance of features that stream by, and the Frechet distance between two Gaussians."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.errors import DataError
from cmdist.system.texts import counted

SLAB = 512  # rows of a covariance that are summed together, right of its diagonal


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and unbiased covariance (D,D), float64 on the CPU,
    of the features of n images (0: nobody knows how many).
    """

    n: int
    mean: Tensor
    covariance: Tensor


class Moments:
    """Mean and scatter of features, added piece by piece (Chan, Golub and LeVeque 1983);
    memory does not grow with the images.

    The last bits depend on how the features are cut into pieces, so the caller cuts them in one way whatever the number
    of ranks. Large pieces are faster. `device` must know float64.
    """

    def __init__(self, dimensions: int, device: str | torch.device = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64, device=device)
        # sum of (x - mean) (x - mean)^T, of which only the upper triangle is kept
        self.scatter = torch.zeros((dimensions, dimensions), dtype=torch.float64, device=device)

    @classmethod
    def of(cls, n: int, mean: Tensor, scatter: Tensor) -> "Moments":
        """Those that another one had."""
        moments = cls(len(mean))
        moments.n, moments.mean, moments.scatter = n, mean.clone(), scatter.clone()
        return moments

    def add(self, features: Tensor) -> None:
        """Add features (B,D) of any precision."""
        if not len(features):
            return
        x = features.to(self.mean.device, torch.float64, copy=True)
        mean = x.mean(dim=0)
        x -= mean
        for first in range(0, len(mean), SLAB):
            rows = slice(first, first + SLAB)
            self.scatter[rows, first:].addmm_(x[:, rows].T, x[:, first:])
        self._shift(len(x), mean)

    def merge(self, other: "Moments") -> None:
        """Add what another one has seen."""
        if other.n:
            self.scatter += other.scatter
            self._shift(other.n, other.mean)

    def _shift(self, n: int, mean: Tensor) -> None:
        """Make the sum of two scatters that of all, around the mean of all."""
        total, shift = self.n + n, mean - self.mean
        self.scatter.addr_(shift, shift, alpha=self.n * n / total)
        self.mean += shift * (n / total)
        self.n = total

    def statistics(self) -> Statistics:
        """What they amount to. Raises DataError for a single image."""
        if self.n < 2:
            raise DataError(f"{counted(self.n, 'image')}: a covariance needs two")
        upper = self.scatter.triu()
        return Statistics(self.n, self.mean.cpu().clone(), ((upper + upper.triu(1).T) / (self.n - 1)).cpu())


def check_count(n: int, dimensions: int) -> None:
    """Raise DataError if n images are too few for a covariance of `dimensions` features."""
    if n < 2 * dimensions:
        raise DataError(
            f"{n} images are too few for a Frechet distance in {dimensions} features: at "
            f"least {2 * dimensions} are needed, "
            f"{max(5000, 50_000 * (dimensions > 512))} are usual"
        )


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)),
    squared 2-Wasserstein distance of two Gaussians (Heusel et al. 2017, eq. 6).

    With C = R R^T from symmetric eigenvalues, the last trace is the sum of the singular values of R_a^T R_b. Nothing
    has to be positive definite, no root of a general matrix is taken, and singular covariances lose no digits. Raises
    DataError if either is of other dimensions, or of too few images for them.
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
