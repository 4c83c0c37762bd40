"""docs/studies/identities.md: its sentences, and where their numbers come from."""

from collections.abc import Mapping

from cmdist.report.tables import Table, read
from cmdist.system import storage

SMALL = 1e-11  # what float64 leaves of 0
_COUNT = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
# the runs of configs/studies/objectives.yaml that stand for a kind
RUNS = {
    "denoising": "teacher",
    "consistency_distillation": "cd",
    "consistency_training": "ict",
    "easy_consistency_tuning": "ect",
    "consistency_mid_training": "cmt",
    "truncated_consistency_training": "tcm",
    "progressive_distillation": "pd",
    "continuous_distillation": "ccd",
    "continuous_training": "cct",
    "scm_distillation": "scd",
    "scm_training": "sct",
    "alpha_flow": "alpha_flow",
    "mean_flow": "mean_flow",
    "improved_mean_flow": "improved_mean_flow",
    "lagrangian": "lagrangian",
}

TEXT = """# What each objective knows of its own solution

Every objective rests on an identity that holds at its solution. On data of one pixel, N(0.3, 0.7²), the solution is a
formula: the denoiser, the consistency function, the mean denoiser between two noise levels. So is the law of the
images that a noisy pixel may come from. The loss of the product, made from its row of the table of kinds, is asked
there in float64.

    python pipelines/exact.py identities     # writes this page and its table, in seconds

**Residual.** The mean, over those images (16 nodes of Gauss-Hermite quadrature), of the loss's derivative by the
student's output; its root mean square over 256 pixels and noise levels that the objective draws; over the same of a
student that is wrong by a tenth (a denoiser's distance from the mean 1.1 times as large, a consistency function's
exponent 0.55 for 1/2). Where the identity holds only as
steps become small, the finest of three is shown, and the order at which the residual falls towards it.

**Figures.** Fréchet distance of 5,000 digits in one and two steps of sampling, medians of three seeds, from
[the study of all objectives](objectives.md); minutes of training each. Consistency training stands there as improved
CT from the teacher's weights; the paper's own from random ones reaches {plain}.

{summary}

| objective | finer | | residual | order |
|---|---|---|---|---|
{all}

## What is seen

* {exact} kinds hold to float64's rounding: on average over the images, or for each. MeanFlow's goal contains one
  image's velocity, so its gap is not 0 for an image; its mean is.
* Heun's step leaves a residual of order 2 relative to what a wrong student is told, which is itself proportional to the
  gap; training's own pairs leave order 1, which is why its numbers of levels must grow ([the limit](limit.md)).
* A residual says nothing about the variance of a gradient.

Adaptive weights, which depend on one image's error, are nearly constant here (`power: 0`, `tangent_c` and `eps` large):
with them the mean of a product is not the product of means. That bias is not measured here.
`tests/theory/test_identities.py` computes the table again and fails if a kind has no row."""


def values(folder: str) -> dict[str, str]:
    """What stands in the braces, from the tables of `folder` and of the study beside it."""
    rows, medians = read(folder, "residuals"), read(storage.join(folder, "..", "objectives"), "medians")
    last = {row["objective"]: float(row["residual"]) for row in rows}
    exact = sum(value < SMALL for value in last.values())
    return {
        "exact": _COUNT[exact],
        "plain": " / ".join(_median(medians, "ct", sampler) for sampler in ("1", "2")),
        "summary": summary(rows, medians),
        "all": "\n".join(map(_line, rows)),
    }


def summary(residuals: Table, medians: Table) -> str:
    """The table on top of the README."""
    lines = ["|objective|at its solution|residual|one step|two|", "|---|---|---|---|---|"]
    last = {row["objective"]: row for row in residuals}
    for kind, row in last.items():
        found = f"{shown(row)}, order {float(row['order']):.1f}" if row["order"] else shown(row)
        one, two = (_median(medians, RUNS[kind], sampler) for sampler in ("1", "2"))
        one = one or f"{_median(medians, RUNS[kind], 'heun')} (ODE)"
        lines.append(f"|`{kind}`|{row['identity']}|{found}|{one}|{two}|")
    return "\n".join(lines)


def shown(row: Mapping[str, str]) -> str:
    """A residual; one digit of what is rounding."""
    value = float(row["residual"])
    return f"{value:.0e}" if value < SMALL else f"{value:.2g}"


def _line(row: Mapping[str, str]) -> str:
    order = f"{float(row['order']):.2f}" if row["order"] else ""
    return f"| {row['objective']} | {row['finer']} | {row['knob']} | {shown(row)} | {order} |"


def _median(medians: Table, group: str | None, sampler: str) -> str:
    """Of the run that was trained longest."""
    found = [row for row in medians if row["group"] == group and row["sampler"] == sampler]
    return found[-1]["median"] if found else ""
