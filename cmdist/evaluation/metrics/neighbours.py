"""Improved precision and recall (Kynkaanniemi et al. 2019):
manifolds of balls that reach to each feature's k-th neighbour.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cmdist.errors import DataError
from cmdist.evaluation.metrics.kernel import Rows

NEIGHBOURS = 3  # as in the tables of the consistency-model and ADM papers
BLOCK = 2048  # rows at a time: memory grows with n only by n radii


def precision_recall(
    generated: Rows, real: Rows, k: int = NEIGHBOURS, device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """(share of `generated` inside the manifold of `real`, share of `real` inside the manifold of `generated`).

    Raises DataError if there are not more than k of either.
    """
    if min(len(generated), len(real)) <= k:
        raise DataError(
            f"precision and recall with {k} neighbours need more images than that: there "
            f"are {len(generated)} and {len(real)}"
        )
    return _covered(generated, real, k, device), _covered(real, generated, k, device)


def _covered(rows: Rows, manifold: Rows, k: int, device: str | torch.device) -> float:
    """Share of rows that lie within the radius of any row of the manifold."""
    radii = _radii(manifold, k, device)
    inside = 0
    for _, x in _blocks(rows, device):
        hit = torch.zeros(len(x), dtype=torch.bool, device=device)
        for first, y in _blocks(manifold, device):
            hit |= (_squared_distances(x, y) <= radii[first : first + len(y)]).any(dim=1)
        inside += int(hit.sum())
    return inside / len(rows)


def _radii(rows: Rows, k: int, device: str | torch.device) -> Tensor:
    """Squared distance (n,) of each row to its k-th nearest other row."""
    radii = []
    for first, x in _blocks(rows, device):
        nearest = torch.full((len(x), k), torch.inf, dtype=torch.float64, device=device)
        for second, y in _blocks(rows, device):
            distances = _squared_distances(x, y)
            if first == second:
                distances.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distances], dim=1).topk(k, dim=1, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _blocks(rows: Rows, device: str | torch.device) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(rows), BLOCK):
        yield first, rows[torch.arange(first, min(first + BLOCK, len(rows)))].to(device=device, dtype=torch.float64)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_(min=0)
