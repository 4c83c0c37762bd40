"""The pages of trained studies say what their tables have."""

import itertools
from pathlib import Path

import pytest

from cmdist.studies import claims, grid, page, running
from ranks import REPOSITORY
from studies.small import write

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


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("cifar10_")])
def test_each_study_has_a_recipe_at_cifar10s_scale(name: str, tmp_path: Path) -> None:
    """Every run of it is a configuration, and has a name of its own."""
    study = grid.load(str(REPOSITORY / f"configs/studies/{name}.yaml"))
    made = grid.cells(study, str(tmp_path), prepared=False)
    assert len(made) == sum(
        len(list(itertools.product(*group.axes.values()))) for group in study.groups.values()
    ) and all(cell.config.data.image_size == 32 and cell.measure.n == 50_000 for cell in made)
    assert name.removeprefix("cifar10_") in STUDIES


def test_no_study_is_without_one() -> None:
    assert {name for name in STUDIES if not name.startswith("cifar10_")} - {"demo"} == {
        name.removeprefix("cifar10_") for name in STUDIES if name.startswith("cifar10_")
    }


def test_a_dry_run_needs_no_data(tmp_path: Path) -> None:
    lines: list[str] = []
    running.print_plan(grid.load(write(tmp_path)), str(tmp_path), lines.append)
    assert lines[0].startswith(f"{tmp_path}/data/digits is not there yet") and len(lines) == 1 + 6 + 2
    assert "6 runs, 6 missing" in lines[-2] and "GPU-hours of an A100 at 30% of its peak" in lines[-1]
