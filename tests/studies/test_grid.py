"""The grid of a study: its cells, their names, and what is refused."""

from pathlib import Path

import pytest

from cmdist.errors import CmdistError, ConfigError
from cmdist.studies import grid, running, slurm
from runs import make_data, make_run
from studies.small import STUDY, write


@pytest.fixture
def root(tmp_path: Path) -> str:
    make_data(tmp_path / "data/digits")
    return str(tmp_path)


def cells(root: str, text: str = STUDY) -> list[grid.Cell]:
    return grid.cells(grid.load(write(Path(root), text)), root)


def test_each_combination_of_axes_and_seeds_is_a_run(root: str) -> None:
    made = cells(root)
    assert [cell.title for cell in made] == [
        "teacher seed=1",
        "teacher seed=2",
        "cd distance=l1 seed=1",
        "cd distance=l1 seed=2",
        "cd distance=l2 seed=1",
        "cd distance=l2 seed=2",
    ]
    assert len({cell.name for cell in made}) == 6
    followed = {cell.seed: cell for cell in made[:2]}
    for cell in made[2:]:
        assert cell.config.teacher == followed[cell.seed].url and cell.needs == (followed[cell.seed],)
        assert cell.config.objective.distance.kind == cell.axes["distance"]  # type: ignore[attr-defined]
        assert cell.steps == (2, 4) and cell.samplers(4) == ["1", "2", "3"]
        assert cell.config.train.checkpoint_every == 2 and cell.config.run.seed == cell.seed
    assert made[0].samplers(4) == ["heun"] and all(cell.missing() == list(cell.steps) for cell in made)


def test_a_run_has_one_name_in_all_studies_and_a_changed_axis_makes_new_ones_only(root: str, tmp_path: Path) -> None:
    before = {cell.name for cell in cells(root)}
    three = "'2': {objective.distance.kind: l2}, huber: {objective.distance: {kind: pseudo_huber}}"
    more = STUDY.replace("l2: {objective.distance: {kind: l2}}", three)
    after = {cell.name for cell in cells(root, more.replace("title: A small", "title: Another"))}
    assert before < after and len(after - before) == 2
    longer = {
        cell.name for cell in cells(root, STUDY.replace("{train.steps: 4}, measure", "{train.steps: 5}, measure"))
    }
    assert not before & longer  # another teacher makes other students
    make_data(tmp_path / "moved/data/digits")
    assert {cell.name for cell in cells(str(tmp_path / "moved"))} == before
    make_data(tmp_path / "other/data/digits", n=200)
    assert not {cell.name for cell in cells(str(tmp_path / "other"))} & before


def test_a_run_that_is_there_for_others_is_trained_and_not_measured(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unmeasured = STUDY.replace(
        "keys: {train.steps: 4}, measure: {n: 128}}", "keys: {train.steps: 4}, measure: {steps: []}}"
    )
    teacher = cells(root, unmeasured)[0]
    assert list(teacher.samplers(4)) == [] and teacher.missing() == [4]
    monkeypatch.setattr(grid.Cell, "trained", lambda cell: True)
    assert teacher.missing() == []
    assert slurm.generations(cells(root, unmeasured)) == [[2, 3, 4, 5]]


def test_generations_on_slurm_follow_each_other(root: str) -> None:
    assert slurm.generations(cells(root)) == [[0, 1], [2, 3, 4, 5]]


def test_a_run_does_not_follow_one_that_was_stopped_before_its_end(root: str) -> None:
    """As the student of a teacher whose task of an array was cancelled and has committed its step."""
    teacher, _, student, *_ = cells(root)
    make_run(Path(root) / "runs", teacher.name, Path(root) / "data/digits", "denoising", step=1)
    with pytest.raises(CmdistError, match="cd distance=l1 seed=1 follows teacher seed=1, which is not trained to its"):
        running.make(student, root, lambda line: None)


def test_the_grid_and_its_cost_are_printed(root: str) -> None:
    lines: list[str] = []
    running.print_plan(grid.load(write(Path(root))), root, lines.append)
    assert len(lines) == 8 and lines[2].split()[1:4] == ["cd", "distance=l1", "seed=1"]
    assert lines[-2].startswith("6 runs, 6 missing: 0.1 TFLOP")
    assert running.duration(60 * 59) == "59 min" and running.duration(60 * 90) == "1 h 30 min"


AXIS = "{l1: {objective.distance: {kind: l1}}, l2: {objective.distance: {kind: l2}}}"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "teacher: teacher}",
            "teacher: nobody}",
            "teacher = nobody: a group above it is allowed: teacher",
        ),
        ("seeds: [1, 2]", "seeds: [1, 1]", "name one twice"),
        ("seeds: [1, 2]", "seeds: []", "key 'seeds'"),
        ("seeds: [1, 2]", "seeds: [-1]", "key 'seeds.0'"),
        ("x: images", "x: colour", "x = colour, by = distance; allowed: distance, group, images, steps, tflop"),
        ("groups: [cd], steps: ['1']", "groups: [ct], steps: ['1']", "panels.0.groups: ct is none of teacher, cd"),
        ("question:", "qestion:", "key 'question'"),
        ("at: [2]", "at: [8]", "groups.cd.measure.at: 8 is above train.steps 4"),
        ("kind: l1}", "kind: l7}", "groups.cd: "),
        ("configs/digits/cd.yaml", "configs/digits/none.yaml", "groups.cd: config configs/digits/none.yaml"),
        (AXIS, "{}", "groups.cd.axes.distance has no value"),
    ],
)
def test_an_impossible_study_is_one_sentence(root: str, old: str, new: str, sentence: str) -> None:
    assert old in STUDY
    with pytest.raises(ConfigError) as caught:
        cells(root, STUDY.replace(old, new))
    assert sentence in str(caught.value)


def test_a_run_with_axes_cannot_be_followed(root: str) -> None:
    text = STUDY.replace("panels:", "  last: {config: configs/digits/ict.yaml, after: {init: cd}}\npanels:")
    with pytest.raises(ConfigError, match=r"groups.last.after.init = cd: it has axes"):
        cells(root, text)
