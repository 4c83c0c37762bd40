"""Each objective at its own solution: exactly right, or wrong by the steps that it takes."""

from functools import partial
from pathlib import Path

import pytest

from cmdist.kinds.objectives import OBJECTIVES
from cmdist.report import tables
from cmdist.theory import identities, identities_page
from cmdist.theory.identities import IDENTITIES, WRONG, Identity, denoiser, function, residual

ROOT = Path(__file__).parents[2]
# of what an objective does in steps: the order of its residual relative to a wrong student's
ORDERS = {
    "consistency_distillation": 2,  # Heun's error of order 3 in a step, over a gap
    "consistency_training": 1,
    "easy_consistency_tuning": 1,
    "truncated_consistency_training": 1,
    "consistency_mid_training": 2,  # DPM-Solver++(2M)
    "alpha_flow": 1,  # alpha squared, over what alpha lets it see of a mistake
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_at_the_solution_a_loss_stands_still(kind: str) -> None:
    identity = IDENTITIES[kind]
    found = [residual(kind, identity, keys) / residual(kind, identity, keys, WRONG) for _, keys in identity.tried]
    if kind not in ORDERS:
        assert found[0] < identities_page.SMALL
        return
    (knob, _), (last, _) = identity.tried[-2:]
    assert found[-2] / found[-1] == pytest.approx((last / knob) ** ORDERS[kind], rel=0.2)
    assert found[-1] < 0.1


@pytest.mark.parametrize("kind", [kind for kind in OBJECTIVES if kind not in ORDERS])
def test_a_function_that_solves_another_objective_is_no_solution(kind: str) -> None:
    """So a residual of 0 is not what any smooth student gets."""
    identity = IDENTITIES[kind]
    keys = identity.tried[0][1]
    other = partial(function, 0.002) if identity.solution is denoiser else denoiser
    wrong = Identity(identity.words, other, identity.knob, identity.tried)
    assert residual(kind, wrong, keys) > 1e-3 * residual(kind, identity, keys, WRONG)


def test_the_committed_table_is_what_is_computed() -> None:
    committed = tables.read(str(ROOT / "docs/studies/identities"), "residuals")
    computed = identities.table()
    assert len(committed) == len(computed) and {row["objective"] for row in computed} == set(OBJECTIVES)
    for row, other in zip(computed, committed, strict=True):
        assert row["identity"] == other["identity"] and tables.shown(row["knob"]) == other["knob"]
        assert float(row["residual"]) == pytest.approx(float(other["residual"]), rel=2e-3, abs=identities_page.SMALL)


def test_the_readmes_table_is_the_pages() -> None:
    studies = ROOT / "docs/studies"
    rows, medians = (tables.read(str(studies / name), table) for name, table in
                     (("identities", "residuals"), ("objectives", "medians")))  # fmt: skip
    assert identities_page.summary(rows, medians) in (ROOT / "README.md").read_text()
