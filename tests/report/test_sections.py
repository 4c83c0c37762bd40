"""Sections of the report, of runs as plain dictionaries."""

from cmdist.report import sections
from cmdist.report.comparison import Row


def row(name: str, numbers: str | None, **histories: list[tuple[int, float]]) -> Row:
    tags = {} if numbers is None else {"cmdist.numbers": numbers}
    made = Row({"id": name, "params": {}, "metrics": {}, "tags": tags}, "uri", name)
    made.__dict__["histories"] = histories
    return made


def test_each_number_of_an_objective_has_a_chart():
    steps = [(1, 1.0), (2, 64.0)]
    ours = row("ect", "stage,r_over_t", stage=steps, r_over_t=[(1, 0.5), (2, 0.9)], lr=steps, n_timesteps=steps)
    cards = sections._numbers([ours, row("edm", "", lr=steps)])
    assert [title.partition(" <")[0] for title, _ in cards] == ["stage", "r over t"]
    assert all("<svg" in drawn for _, drawn in cards)


def test_runs_from_before_numbers_were_told_have_n_and_mu():
    old = row("ct", None, n_timesteps=[(1, 2.0), (2, 64.0)], mu=[(1, 0.0), (2, 0.0)])
    (first, drawn), (second, nothing) = sections._numbers([old])
    assert first.startswith("N(k)") and "<svg" in drawn
    assert second.startswith("μ(k)") and not nothing  # without a target network there is no curve
