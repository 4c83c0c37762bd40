"""The numbers of docs/studies/limit.md: why the number of steps of consistency training must go to infinity."""

from collections.abc import Callable, Sequence
from math import log2

import torch
from torch import Tensor

from cmdist.core.curricula import Constant, Curriculum, Doubling, Paper
from cmdist.core.noise import karras_level, karras_sigmas, lognormal_probabilities
from cmdist.core.solvers import euler_step, heun_step, integrate
from cmdist.core.studies import gradients
from cmdist.core.studies.fixed_points import (
    chain_moments,
    distillation,
    gaussian_outputs,
    training,
    variance_by_level,
)
from cmdist.core.studies.learning import learn
from cmdist.core.studies.line import Line, masses
from cmdist.report.tables import Row

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def _line(means: Sequence[float], std: float, weights: Sequence[float]) -> Line:
    return Line(torch.tensor(means, dtype=torch.float64), std, torch.tensor(weights, dtype=torch.float64))


APART = _line([-1, 1], 0.2, [0.3, 0.7])
DATA = {"two modes": APART, "broad": _line([-1, 1], 0.6, [0.3, 0.7]), "gaussian": _line([0.4], 0.5, [1])}
METHODS = ("training", "euler", "heun")
STEPS = {"euler": euler_step, "heun": heun_step}
LOGNORMAL = (-1.1, 2.0)  # improved CT's mean and standard deviation of ln sigma


def grid(levels: int) -> list[float]:
    """Karras' noise levels, descending."""
    return [float(s) for s in karras_sigmas(levels, SIGMA_MIN, SIGMA_MAX, dtype=torch.float64)]


def fixed_points(counts: Sequence[int]) -> list[Row]:
    """Errors of the fixed points at sigma_max for every data set, method and number of levels; `slope` since the number
    before. `smooth` counts only points that end outside the modes' middles, where the exact function has no step.
    """
    rows: list[Row] = []
    for name, line in DATA.items():
        z = line.scores(SIGMA_MIN, *((900, 500) if line is APART else (300, 200)))  # as fine as its steps are
        weight, true, x = masses(z), line.quantile(z, SIGMA_MIN), line.quantile(z, SIGMA_MAX)
        outside = weight * (true.abs() > 1)
        for method in METHODS:
            before: dict[str, float] = {}
            for levels in counts:
                lost = 0.0
                if method == "training":
                    tables = training(line, grid(levels), z, nodes=10)
                    f, lost = tables[0], float(variance_by_level(tables, z).sum())
                else:
                    f = distillation(line.denoiser, STEPS[method], grid(levels), x)
                gap = (f - true).abs()
                now = {"mean_abs": float(weight @ gap), "smooth": float(outside @ gap) / float(outside.sum())}
                fall = {
                    f"{key}_slope": log2(before[key] / now[key]) / log2(levels / before["levels"]) if before else ""
                    for key in now
                }
                variance = float(weight @ (f - weight @ f) ** 2)
                rows.append(
                    {
                        "data": name,
                        "method": method,
                        "levels": levels,
                        **now,
                        "rms": float(weight @ gap**2) ** 0.5,
                        **fall,
                        "variance": variance,
                        "variance_lost": lost,
                        "data_variance": line.variance + SIGMA_MIN**2,
                    }
                )
                before = now | {"levels": levels}
    return rows


def functions(counts: Sequence[int], shown: int = 161) -> list[Row]:
    """The exact function of the two modes and the fixed points over x / sigma_max at sigma_max, for the figure."""
    z = APART.scores(SIGMA_MIN, 900, 500)
    x = APART.quantile(z, SIGMA_MAX)
    result = {("exact", 0): APART.quantile(z, SIGMA_MIN)}
    for levels in counts:
        result["training", levels] = training(APART, grid(levels), z, nodes=10)[0]
        result["euler", levels] = distillation(APART.denoiser, euler_step, grid(levels), x)
    want = torch.linspace(-2.5, 2.5, shown, dtype=torch.float64)
    places = [int((x / SIGMA_MAX - w).abs().argmin()) for w in want.tolist()]
    return [
        {"method": method, "levels": levels, "x": float(x[i]) / SIGMA_MAX, "f": float(f[i])}
        for (method, levels), f in result.items()
        for i in dict.fromkeys(places)
    ]


def walks(levels: int, start: float, number: int, kept: int) -> list[Row]:
    """From one point at sigma_max: `kept` of `number` walks of training's chain, Euler's path and the ODE's, as x /
    sqrt(sigma^2 + 1); the mean of all walks' ends is `walk` -1.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.full((number,), start, dtype=torch.float64)
    sigmas = grid(levels)
    paths = [x]
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        weights, means, std = chain_moments(APART, paths[-1], sigma, sigma_next)
        k = torch.multinomial(weights, 1, generator=generator)
        noise = torch.randn(number, generator=generator, dtype=torch.float64)
        paths.append(means.gather(1, k)[:, 0] + std * noise)
    rows: list[Row] = [
        {"path": f"walk {i}", "sigma": s, "x": float(x[i])}
        for i in range(kept)
        for s, x in zip(sigmas, paths, strict=True)
    ]
    one = x[:1, None]
    for i, sigma in enumerate(sigmas):
        end = integrate(euler_step, APART.denoiser, one, torch.tensor(sigmas[: i + 1], dtype=torch.float64))
        rows.append({"path": "euler", "sigma": sigma, "x": float(end)})
    rows += [
        {"path": "exact", "sigma": s, "x": float(APART.quantile(_score(start), s))}
        for s in (SIGMA_MAX * (SIGMA_MIN / SIGMA_MAX) ** (i / 120) for i in range(121))
    ]
    return [*rows, {"path": "mean", "sigma": SIGMA_MIN, "x": float(paths[-1].mean())}]


def _score(x: float) -> Tensor:
    at = torch.tensor([x], dtype=torch.float64)
    return torch.special.ndtri(APART.tail(at, SIGMA_MAX, torch.tensor([False])))


def variance(counts: Sequence[int]) -> list[Row]:
    """Where in sigma training loses the data's variance, and what part of the pairs is drawn there."""
    rows: list[Row] = []
    z = APART.scores(SIGMA_MIN, 900, 500)
    for levels in counts:
        sigmas = grid(levels)
        lost = variance_by_level(training(APART, sigmas, z, nodes=10), z)
        drawn = lognormal_probabilities(torch.tensor(sigmas, dtype=torch.float64), *LOGNORMAL)
        for i, part in enumerate(lost.tolist()):
            share = part / float(lost.sum())
            rows.append(
                {
                    "levels": levels,
                    "sigma": sigmas[i],
                    "lost": part,
                    "share": share,
                    "uniform": 1 / (levels - 1),
                    "lognormal": float(drawn[i]),
                }
            )
    return rows


SCHEDULES: dict[str, Callable[[int, int], Curriculum]] = {  # (most steps of the grid, time) -> N(k)
    "N = 11": lambda most, time: Constant(11),
    "N = 21": lambda most, time: Constant(21),
    "N = s1 + 1": lambda most, time: Constant(most + 1),
    "paper's N(k)": lambda most, time: Paper(2, most, 0.9, time),
    "doubling N(k)": lambda most, time: Doubling(10, most, time),
}


def stages(curriculum: Curriculum, time: int) -> list[tuple[int, float]]:
    """(N, how long) of a curriculum."""
    result: list[tuple[int, float]] = []
    for k in range(time):
        n = curriculum(k).n_timesteps
        if result and result[-1][0] == n:
            result[-1] = (n, result[-1][1] + 1)
        else:
            result.append((n, 1.0))
    return result


def schedules(most: int, time: int, moments: int = 30, points: tuple[int, int] = (90, 60)) -> list[Row]:
    """Mean absolute error of a tabular learner at sigma_max, and at the level nearest 1, along the published schedules
    with `most` steps at the end, after equal numbers of updates.
    """
    z = APART.scores(SIGMA_MIN, *points)
    weight, true = masses(z), APART.quantile(z, SIGMA_MIN)
    draws = {
        "uniform": lambda sigmas: torch.full((len(sigmas) - 1,), 1 / (len(sigmas) - 1), dtype=torch.float64),
        "log-normal": lambda sigmas: lognormal_probabilities(sigmas, *LOGNORMAL),
    }
    rows: list[Row] = []
    for name, make in SCHEDULES.items():
        for draw, chances in draws.items():
            marks = iter([time * (i + 1) / moments for i in range(moments)])
            mark = next(marks)
            for now, sigmas, tables in learn(APART, z, stages(make(most, time), time), chances):
                if now >= mark * (1 - 1e-9):
                    middle = int((sigmas.log()).abs().argmin())
                    high, low = (float(weight @ (tables[i] - true).abs()) for i in (0, middle))
                    rows.append(
                        {
                            "schedule": name,
                            "draw": draw,
                            "time": mark,
                            "levels": len(sigmas),
                            "error": high,
                            "error_at_1": low,
                        }
                    )
                    while mark <= now * (1 + 1e-9) and (mark := next(marks, float("inf"))) < float("inf"):
                        pass
    return rows


def theorems(counts: Sequence[int]) -> list[Row]:
    """Losses with another target (Theorem 2) and with the student's own, and (N - 1) gradients (Theorem 6); the last
    row's gradients are their limit.
    """
    first, other = gradients.student(0.8), gradients.student(0.3)
    rows: list[Row] = []
    for levels in counts:
        sigmas = karras_sigmas(levels, SIGMA_MIN, SIGMA_MAX, dtype=torch.float64)
        cd, ct = (gradients.loss(APART, first, sigmas, step, other).item() for step in (euler_step, None))
        own = [gradients.loss(APART, first, sigmas, step).item() for step in (euler_step, None)]
        slopes = [
            (levels - 1) * gradients.gradient(APART, first, sigmas, step) for step in (euler_step, heun_step, None)
        ]
        rows.append(
            {
                "levels": levels,
                "loss_cd": cd,
                "loss_ct": ct,
                "difference": ct - cd,
                "own_ratio": own[1] / own[0],
                **dict(zip(("gradient_euler", "gradient_heun", "gradient_ct"), slopes, strict=True)),
            }
        )
    limit = gradients.limit_gradient(APART, first, karras_level)
    return [
        *rows,
        dict.fromkeys(rows[0], "")
        | {"levels": "limit", "gradient_euler": limit, "gradient_heun": limit, "gradient_ct": limit},
    ]


def through(counts: Sequence[int], std: float = 0.5) -> list[Row]:
    """Standard deviation of the output at sigma_max for Gaussian data,
    with the target held fixed and with gradient through it.
    """
    return [
        {
            "levels": levels,
            "std": std,
            "held": float(gaussian_outputs(std, grid(levels), through=False)[-1]),
            "through": float(gaussian_outputs(std, grid(levels), through=True)[-1]),
        }
        for levels in counts
    ]
