"""The table of mutations fits the code; that the tests of each objective see all of them is run where there are minutes
(python tests/mutations.py).
"""

import subprocess
import sys

import pytest

from cmdist.kinds.objectives import OBJECTIVES
from mutations import MUTATIONS, REPOSITORY

OLDER = {"denoising", "consistency_distillation", "consistency_training"}  # before there was this table


def test_each_objective_has_five_mutations_of_what_it_is_made_of() -> None:
    assert set(MUTATIONS) >= set(OBJECTIVES) - OLDER
    for kind, each in MUTATIONS.items():
        assert len(each.changes) >= 5, kind
        for file, old, new in each.changes:
            assert (REPOSITORY / "cmdist" / file).read_text().count(old) == 1, (kind, old)
            assert new != old


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATIONS)
def test_every_mutation_is_seen(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "tests/mutations.py", kind], cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
