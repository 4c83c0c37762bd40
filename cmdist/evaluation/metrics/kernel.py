"""Kernel inception distance (Binkowski et al. 2018):
a polynomial kernel's squared maximum mean discrepancy, unbiased.
"""

from typing import Protocol

import torch
from torch import Tensor

from cmdist import seeding
from cmdist.errors import DataError

SUBSETS = 100
SUBSET_SIZE = 1000  # the numbers of the paper and of clean-fid


class Rows(Protocol):
    """Features (n,D) that are taken row by row; a tensor is one, and so is a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


def kernel_distance(
    generated: Rows, real: Rows, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> float:
    """Mean over random subsets of the unbiased squared discrepancy under k(x, y) = (x.y / D + 1)^3.

    Subsets have `size` rows of each, or as many as there are; those of all rows are all the same, so one is enough.
    Raises DataError if that is less than two rows.
    """
    m = min(len(generated), len(real), size)
    if m < 2:
        raise DataError(
            f"a kernel distance needs at least 2 images of both kinds, and there are {len(generated)} and {len(real)}"
        )
    total, subsets = 0.0, subsets if m < max(len(generated), len(real)) else 1
    for subset in range(subsets):
        generator = seeding.generator("cpu", seed, "kernel distance", subset)
        x = generated[torch.randperm(len(generated), generator=generator)[:m]].double()
        y = real[torch.randperm(len(real), generator=generator)[:m]].double()
        total += float(_within(x) + _within(y) - 2 * _kernel(x, y).mean())
    return total / subsets


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))
