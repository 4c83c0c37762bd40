"""The pages of docs/studies that are computed: their tables, their figures, their text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cmdist.data.preparing.sources.digits import digits as digits_source
from cmdist.errors import ConfigError
from cmdist.report import tables
from cmdist.report.tables import Row
from cmdist.system import storage
from cmdist.theory import (
    digits,
    identities,
    identities_page,
    limit,
    limit_figures,
    limit_page,
    multistep,
    multistep_figures,
    multistep_page,
)
from cmdist.theory import trained as trained_runs
from cmdist.theory.multistep import Study

COUNTS = (18, 20, 40, 80, 160, 320, 640, 1280)
FEW, MANY = 18, 80  # levels of distillation in the paper; a stage on training's way
SCHEDULE = (40, 1500)  # s1, and updates times their rate
START = -30.0  # the point at sigma 80 whose walks are drawn


def compute(question: str, out: str, most: int, runs: Sequence[str], only: Sequence[str] = ()) -> None:
    """Write the tables of a page into OUT/QUESTION, or `only` some; numbers of levels above `most` are left out, and
    without runs the tables of trained ones stay as they are. Raises ConfigError.
    """
    folder, counts = storage.join(out, question), [n for n in COUNTS if n <= most]
    study = QUESTIONS[question].tables
    if unknown := set(only) - set(study):
        raise ConfigError(f"{question} has no table {', '.join(sorted(unknown))}; it has {', '.join(study)}")
    for name in only or study:
        tables.write(folder, name, study[name](counts))
    if runs and not only:
        told, errors, distances = trained_runs.compare(runs)
        tables.write(folder, "trained_grid", [{"levels": trained_runs.LEVELS}])
        tables.write(folder, "trained_runs", told)
        tables.write(folder, "trained_error", errors)
        tables.write(folder, "trained_tau", distances)


def _digits(counts: Sequence[int]) -> list[Row]:
    source = digits_source()
    pixels = torch.stack([torch.from_numpy(source.image(i)) for i in range(source.count)])
    images = pixels.permute(0, 3, 1, 2).double() / 127.5 - 1
    return digits.chain(images, [n for n in counts if 20 <= n <= 160], starts=256, walks=4)


def _studies() -> list[Study]:
    return [Study(FEW), Study(MANY)]


Make = Callable[[Sequence[int]], list[Row]]  # numbers of levels -> rows
LIMIT: dict[str, Make] = {
    "fixed_points": limit.fixed_points,
    "functions": lambda counts: limit.functions([FEW, MANY]),
    "walks": lambda counts: limit.walks(FEW, START, 4000, 30),
    "variance": lambda counts: limit.variance([FEW, MANY]),
    "through": limit.through,
    "theorems": lambda counts: limit.theorems([n for n in counts if 20 <= n <= 320]),
    "schedules": lambda counts: limit.schedules(*SCHEDULE),
    "digits": _digits,
}
MULTISTEP: dict[str, Make] = {
    "exactly": lambda counts: multistep.exactly(Study(FEW)),
    "two_steps": lambda counts: [row for study in _studies() for row in multistep.two_steps(study)],
    "forgetting": lambda counts: [row for study in _studies() for row in multistep.forgetting(study)],
    "many_steps": lambda counts: multistep.many_steps(Study(FEW), 8),
}


@dataclass(frozen=True)
class Question:
    """A page of docs/studies."""

    tables: Mapping[str, Make]
    text: str  # with braces
    values: Callable[[str], Mapping[str, str]]  # what stands in them, from the folder of the tables
    figures: Callable[[str], None] | None = None


QUESTIONS = {
    "limit": Question(LIMIT, limit_page.TEXT, limit_page.values, limit_figures.draw),
    "multistep": Question(MULTISTEP, multistep_page.TEXT, multistep_page.values, multistep_figures.draw),
    "identities": Question(
        {"residuals": lambda counts: identities.table()}, identities_page.TEXT, identities_page.values
    ),
}


def draw(question: str, out: str) -> str:
    """Figures and page from the tables of OUT/QUESTION; the page's place."""
    folder, place = storage.join(out, question), storage.join(out, f"{question}.md")
    if figures := QUESTIONS[question].figures:
        figures(folder)
    storage.write(place, text(question, out).encode())
    return place


def text(question: str, out: str) -> str:
    """The page as its tables have it."""
    page = QUESTIONS[question]
    return page.text.format(**page.values(storage.join(out, question))).rstrip() + "\n"
