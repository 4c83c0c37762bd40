"""The pages of trained studies say what their tables have."""

import pytest

from cmdist.studies import claims, grid, page
from ranks import REPOSITORY

OUT = REPOSITORY / "docs/studies"
STUDIES = [path.stem for path in sorted((REPOSITORY / "configs/studies").glob("*.yaml"))]


@pytest.mark.parametrize("name", [name for name in STUDIES if (OUT / f"{name}.md").exists()])
def test_every_number_of_a_page_is_read_from_its_table(name: str) -> None:
    study = grid.load(str(REPOSITORY / f"configs/studies/{name}.yaml"))
    assert (OUT / f"{name}.md").read_text() == page.text(study, name, str(OUT))


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_can_be_read(name: str) -> None:
    study = grid.load(str(REPOSITORY / f"configs/studies/{name}.yaml"))
    assert 0 not in study.seeds and 5 not in study.seeds  # on which settings were chosen


def test_the_page_of_claims_is_what_the_studies_tables_say() -> None:
    studies = [(name, grid.load(str(REPOSITORY / f"configs/studies/{name}.yaml"))) for name in STUDIES]
    text = claims.text(studies, str(OUT))
    assert (OUT / "claims.md").read_text() == text
    for word in (
        "perceptual",
        "Heun",
        "18 on CIFAR-10",
        "adaptive schedules",
        "behind CD",
        "second step",
        "progressive",
    ):
        assert any(word in line for line in text.splitlines() if line.startswith("|")), word
