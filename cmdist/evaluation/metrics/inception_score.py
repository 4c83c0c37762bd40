"""Inception score (Salimans et al. 2016): exp of the mean divergence of p(y|x) from p(y), averaged over splits."""

import torch
from torch import Tensor

from cmdist.errors import DataError

SPLITS = 10


class InceptionScore:
    """Running sums over `splits` consecutive parts of n images; memory does not grow with n.
    Raises DataError if n is below the splits.
    """

    def __init__(self, n: int, classes: int, splits: int = SPLITS) -> None:
        if n < splits:
            raise DataError(f"an inception score over {splits} splits needs at least as many images, not {n}")
        self.n, self.seen = n, 0
        self._bounds = torch.tensor([n * i // splits for i in range(splits + 1)])
        self._sum = torch.zeros((splits, classes), dtype=torch.float64)  # of p
        self._negentropy = torch.zeros(splits, dtype=torch.float64)  # sum of p log p

    def add(self, probabilities: Tensor) -> None:
        """The next images' class probabilities (B,classes)."""
        p = probabilities.to(device="cpu", dtype=torch.float64)
        split = torch.searchsorted(self._bounds, torch.arange(self.seen, self.seen + len(p)), right=True) - 1
        self._sum.index_add_(0, split, p)
        self._negentropy.index_add_(0, split, torch.xlogy(p, p).sum(dim=1))
        self.seen += len(p)

    def value(self) -> float:
        """The score once all n images were added."""
        assert self.seen == self.n, "the splits were cut for n images"
        sizes = self._bounds.diff().double()
        mean = self._sum / sizes[:, None]
        divergence = self._negentropy / sizes - torch.xlogy(mean, mean).sum(dim=1)
        return float(divergence.exp().mean())
