"""How fast consistency training gets to its fixed point:
a learner that keeps a table for every noise level, for data on a line.

An update draws a pair of neighbours and moves the table of the upper level by a part `rate` of the way to the mean of
its target, the level below as it is now. So what is known near the data wanders up one level after the other, and the
more levels there are, the longer that takes. A network shares its weights among the levels and is faster; what it
shares with the table is the fixed point and the direction.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.core.noise import karras_sigmas
from cmdist.core.studies.fixed_points import chain_moments, hermite
from cmdist.core.studies.line import Line

Chances = Callable[[Tensor], Tensor]  # descending sigmas (N,) -> probability (N - 1,) of each pair


@dataclass(frozen=True)
class Targets:
    """For every level but the last, the mean of the table below along the chain, as a sum over entries of that table:
    places (N - 1, Z, M) and weights, straight between the entries.
    """

    places: Tensor
    shares: Tensor
    weights: Tensor

    @classmethod
    def of(cls, line: Line, sigmas: Tensor, z: Tensor, nodes: int) -> "Targets":
        """On a descending grid of noise levels (N,), for tables at normal scores z (Z,)."""
        h, w = hermite(nodes)
        places, shares, weights = [], [], []
        for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            x, below = line.quantile(z, sigma), line.quantile(z, sigma_next)
            chance, means, std = chain_moments(line, x, sigma, sigma_next)
            at = (means[..., None] + std * h).flatten(1)
            i = (torch.searchsorted(below, at) - 1).clamp(0, len(z) - 2)
            places.append(i)
            shares.append(((at - below[i]) / below.diff()[i]).clamp(0, 1))
            weights.append((chance[..., None] * w).flatten(1))
        return cls(torch.stack(places), torch.stack(shares), torch.stack(weights))

    def __call__(self, tables: Tensor) -> Tensor:
        """(N - 1, Z) targets of the tables (N, Z)."""
        levels = torch.arange(1, len(tables))[:, None, None]
        low, high = tables[levels, self.places], tables[levels, self.places + 1]
        return ((low + self.shares * (high - low)) * self.weights).sum(2)


def learn(
    line: Line, z: Tensor, stages: Sequence[tuple[int, float]], chances: Chances, nodes: int = 6, pace: float = 0.4
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(time, sigmas (N,), tables (N, Z), overwritten later) along the way through `stages` of (N, time spent there).

    Time counts updates multiplied by `rate`, of which only the product matters; all expected values, nothing is drawn.
    At a change of N the new levels are read off between the old ones. At first f(x, sigma) = c_skip(sigma) x.
    """
    now, tables, old = 0.0, torch.empty(0), torch.empty(0)
    for n, span in stages:
        sigmas = karras_sigmas(n, dtype=torch.float64)
        if len(tables) == 0:
            skip = 0.25 / ((sigmas - sigmas[-1]) ** 2 + 0.25)
            tables = torch.stack([c * line.quantile(z, s) for c, s in zip(skip, sigmas.tolist(), strict=True)])
        elif n != len(tables):
            tables = between(old, tables, sigmas)
        tables[-1] = line.quantile(z, float(sigmas[-1]))
        targets, chance = Targets.of(line, sigmas, z, nodes), chances(sigmas)
        steps = max(1, round(span * float(chance.max()) / pace))
        part = (1 - torch.exp(-chance * span / steps))[:, None]
        for _ in range(steps):
            tables[:-1] += part * (targets(tables) - tables[:-1])
            now += span / steps
            yield now, sigmas, tables
        old = sigmas


def between(old: Tensor, tables: Tensor, new: Tensor) -> Tensor:
    """Tables (N, Z) of the descending levels `old` (N,), read off at the levels `new`, even in the grid's own scale."""
    have, want = (-(s ** (1 / 7)) for s in (old, new))
    i = (torch.searchsorted(have, want) - 1).clamp(0, len(old) - 2)
    part = ((want - have[i]) / (have[i + 1] - have[i]))[:, None]
    return tables[i] + part * (tables[i + 1] - tables[i])
