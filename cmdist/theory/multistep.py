"""The numbers of docs/studies/multistep.md: why several steps help, if a consistency function maps every point of a
path to its end.
"""

from collections.abc import Callable, Sequence
from math import pi, sqrt

import torch
from torch import Tensor

from cmdist.core.studies import laws
from cmdist.core.studies.fixed_points import distillation, training
from cmdist.core.studies.laws import Law, total_variation, wasserstein
from cmdist.report.tables import Row
from cmdist.theory.limit import APART, METHODS, SIGMA_MAX, SIGMA_MIN, STEPS, grid

Function = Callable[[float], tuple[Tensor, Tensor]]  # noise level -> ascending x, f there
DISTANCES = (("w1", 1), ("w2", 2))


class Study:
    """The fixed points on a grid of so many levels as functions that sampling can take, and the laws around them."""

    def __init__(self, levels: int, points: tuple[int, int] = (450, 300)) -> None:
        self.levels, self.sigmas = levels, grid(levels)
        self.z = APART.scores(SIGMA_MIN, *points)
        self.x = {s: APART.quantile(self.z, s) for s in self.sigmas}
        self.data = laws.of_line(APART, 0.0, self.z)
        self.prior = Law(SIGMA_MAX * self.z, torch.special.ndtr(self.z))
        self.marginal = laws.of_line(APART, SIGMA_MAX, self.z)
        self._trained = dict(zip(self.sigmas, training(APART, self.sigmas, self.z, nodes=10), strict=True))

    def function(self, method: str) -> Function:
        """The fixed point of a method, or the exact function."""

        def table(sigma: float) -> tuple[Tensor, Tensor]:
            x = self.x[sigma]
            if method == "exact":
                return x, self.x[self.sigmas[-1]]
            if method == "training":
                return x, self._trained[sigma]
            rest = self.sigmas[self.sigmas.index(sigma) :]
            return x, distillation(APART.denoiser, STEPS[method], rest, x)

        return table

    def after(self, method: str, times: Sequence[float], start: Law | None = None) -> Law:
        """The law of the samples after steps at `times`, from N(0, sigma_max^2) unless another start is given."""
        return laws.multistep(start or self.prior, times, SIGMA_MIN, self.function(method))

    def distances(self, law: Law) -> dict[str, float]:
        """W1 and W2 to the data."""
        return {name: wasserstein(law, self.data, power) for name, power in DISTANCES}


def two_steps(study: Study) -> list[Row]:
    """W1 and W2 to the data of one step (tau 0) and of two with the second at each level of the grid."""
    return [
        {
            "method": method,
            "levels": study.levels,
            "tau": times[-1] if len(times) > 1 else 0.0,
            **study.distances(study.after(method, times)),
        }
        for method in METHODS
        for times in ([SIGMA_MAX], *([SIGMA_MAX, tau] for tau in study.sigmas[1:-1]))
    ]


def exactly(study: Study) -> list[Row]:
    """The exact function: nothing changes from p_T, and from N(0, T^2) the start's mismatch is forgotten."""
    end = laws.of_line(APART, SIGMA_MIN, study.z)
    near = [min(study.sigmas, key=lambda s, w=want: abs(s - w)) for want in (10.0, 1.0, 0.3)]  # type: ignore[misc]
    return [
        {
            "start": name,
            "steps": len(times),
            "times": " ".join(f"{t:.3g}" for t in times),
            **{key: wasserstein(study.after("exact", times, start), end, p) for key, p in DISTANCES},
        }
        for name, start in (("p_T", study.marginal), ("N(0, T^2)", study.prior))
        for times in ([SIGMA_MAX], [SIGMA_MAX, near[1]], [SIGMA_MAX, near[2]], [SIGMA_MAX, *near])
    ]


def forgetting(study: Study, lowest: float = 0.02, points: int = 1500) -> list[Row]:
    """For every second time tau: what of one step's error noise leaves (TV, and its bounds by W1 and W2), what the
    function turns that into (`left`, W2), and its own error from there (`error`, W2): two steps are at most left +
    error away.
    """
    one = study.after("training", [SIGMA_MAX])
    away = study.distances(one)
    f = study.function("training")
    rows: list[Row] = []
    for tau in study.sigmas[1:-1]:
        if tau < lowest:
            continue
        noise, reach = sqrt(tau**2 - SIGMA_MIN**2), 3 + 6 * tau
        x = torch.linspace(-reach, reach, points, dtype=torch.float64)
        fresh = laws.of_line(APART, tau, study.z)
        right = Law(f(tau)[1], fresh.below)  # f of p_tau itself: the error from there
        again = one.pushed(noise, *f(tau))
        rows.append(
            {
                "levels": study.levels,
                "tau": tau,
                "tv": total_variation(one, study.data, noise, x),
                "bound_w1": away["w1"] / (noise * sqrt(2 * pi)),
                "bound_w2": away["w2"] / (2 * noise),
                "left": wasserstein(again, right, 2),
                "error": wasserstein(right, study.data, 2),
                "two": wasserstein(again, study.data, 2),
            }
        )
    return rows


def many_steps(study: Study, most: int, low: float = 0.03, high: float = 6.0, levels: int = 12) -> list[Row]:
    """W1 and W2 after one to `most` steps: at each number of steps one more time, the best of about `levels` levels
    between `low` and `high`, is put among those before.
    """
    between = [s for s in study.sigmas if low < s < high]
    between = between[:: max(1, len(between) // levels)]
    rows: list[Row] = []
    for method in METHODS:
        f = study.function(method)
        table = {s: f(s) for s in [SIGMA_MAX, *between]}
        times, law = [SIGMA_MAX], study.after(method, [SIGMA_MAX])
        for step in range(1, most + 1):
            if step > 1:
                tried = [sorted([*times, s], reverse=True) for s in between if s not in times]
                distances = [(laws.multistep(study.prior, t, SIGMA_MIN, table.__getitem__), t) for t in tried]
                law, times = min(distances, key=lambda pair: wasserstein(pair[0], study.data, 2))
            rows.append(
                {
                    "method": method,
                    "levels": study.levels,
                    "steps": step,
                    "times": " ".join(f"{t:.3g}" for t in times),
                    **study.distances(law),
                }
            )
    return rows
