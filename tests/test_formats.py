"""Run folders that commit 92395da left (fixtures/format-3, made by fixtures/make_format_3.py), used by today's code as
they are: evaluated, sampled, exported, resumed and as a teacher.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cmdist import build, config, migrations, models
from cmdist.checkpoints import record, search
from cmdist.errors import FormatError
from cmdist.evaluation import records
from cmdist.evaluation.arithmetic import ARITHMETIC
from fixtures.make_format_3 import RUNS, STEPS, STOP, STUDENT, arithmetic, norms, sha256, weights
from ranks import Ranks, pipeline, run_pipeline
from runs import call

FIXTURES = Path(__file__).parent / "fixtures" / "format-3"
MADE: dict[str, Any] = json.loads((FIXTURES / "made.json").read_text())
SAME_BITS = MADE["arithmetic"] == arithmetic()  # else rounding differs, and numbers are compared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that all tests of this file may add to."""
    copy = tmp_path_factory.mktemp("old") / "copy"
    shutil.copytree(FIXTURES, copy)
    return copy


@pytest.fixture
def old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That copy, as the working directory: what it holds is named relative to it."""
    monkeypatch.chdir(folder)
    return folder


def today(overrides: Sequence[str]) -> list[str]:
    """Overrides of the old commit by the names that their keys have now."""
    pairs = [each.split("=", 1) for each in overrides]
    return [f"{config.MOVED.get(name, name)}={value}" for name, value in pairs]


def train_in(place: str, *arguments: str) -> None:
    os.chdir(place)
    run_pipeline("train", arguments)


def resumed_as_before(run: Path, name: str, step: int) -> None:
    if SAME_BITS:
        assert weights(run, step) == MADE[name]["resumed"]
    else:
        assert norms(run, step) == pytest.approx(MADE[name]["norms"], rel=1e-4)


def test_the_fixtures_say_no_format_where_today_does() -> None:
    for path in [*FIXTURES.glob("runs/*/config.yaml"), *FIXTURES.glob("runs/*/run.json")]:
        assert "format" not in yaml.safe_load(path.read_text()), path
    states = list(FIXTURES.glob("runs/*/checkpoints/*/state.json"))
    records = list(FIXTURES.glob("runs/*/evaluations/*.json"))
    assert len(states) == 3 and len(records) == 5
    assert not any("format" in json.loads(path.read_text()) for path in [*states, *records])


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_evaluated_again_with_the_same_figures(
    old: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = pipeline("evaluate").main
    call(evaluate, f"runs/{name}", "--n", "128", "--metrics", "fd")
    assert capsys.readouterr().out.count("(made before)") == (1 if name == "edm" else 2)  # old records are found
    there = Path("runs") / name / "evaluations"
    records = {path: json.loads(path.read_text()) for path in there.glob("*.json")}
    for path in records:
        path.unlink()
    call(evaluate, f"runs/{name}", "--n", "128", "--metrics", "fd")
    made = {record["title"]: record for record in map(json.loads, (p.read_text() for p in there.glob("*.json")))}
    assert len(made) == len(records)
    for before in records.values():
        now = made[before["title"]]
        assert now["format"] == migrations.EVALUATION.format
        brought_up = migrations.EVALUATION.migrate(before, "x")
        assert now["measured"] == brought_up["measured"] and now["protocol"] == brought_up["protocol"]
        assert now["protocol"] == before["protocol"] | {"arithmetic": ARITHMETIC}
        if SAME_BITS:
            assert (now["metrics"], now["images"]) == (before["metrics"], before["images"])
        assert now["metrics"] == pytest.approx(before["metrics"], rel=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_sampled_and_exported(old: Path, name: str, tmp_path: Path) -> None:
    picture = tmp_path / "samples.png"
    pipeline("sample").main([f"runs/{name}", "--rows", "2", "--out", str(picture)])
    if SAME_BITS:
        assert sha256(picture) == MADE[name]["samples"]
    assert np.asarray(Image.open(picture)).std() > 0
    pipeline("export").main([f"runs/{name}", "--format", "safetensors", "--out", str(tmp_path / "out")])
    assert sha256(tmp_path / "out" / "model.safetensors") == MADE[name]["export"]
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["format"] == migrations.CONFIG.format


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on_to_the_same_weights(old: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "copy")
    run = tmp_path / "copy" / "runs" / name
    done = Ranks(
        1, tmp_path / "log", train_in, str(tmp_path / "copy"), "small.yaml", *today(RUNS[name]), f"run.name={name}"
    )
    assert done.join() == [0], done.text
    assert f"step         {STOP} of {STEPS}" in done.text
    resumed_as_before(run, name, STEPS)
    assert yaml.safe_load((run / "config.yaml").read_text())["format"] == migrations.CONFIG.format
    assert json.loads((run / "run.json").read_text())["format"] == migrations.RUN.format
    new = search.open_checkpoint(str(run), STEPS)
    assert json.loads(new.read_file("state.json"))["format"] == migrations.STATE.format
    assert (run / models.BEFORE).read_bytes() == (FIXTURES / "runs" / name / "config.yaml").read_bytes()


def test_an_old_run_is_a_teacher(old: Path, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "copy")
    done = Ranks(1, tmp_path / "log", train_in, str(tmp_path / "copy"), "small.yaml", *today(STUDENT))
    assert done.join() == [0], done.text
    resumed_as_before(tmp_path / "copy" / "runs" / "student", "student", 2)


def test_the_hash_of_an_old_index_stays(old: Path) -> None:
    data = build.dataset(config.load("small.yaml", ["objective.kind=denoising", "run.name=x"]))
    state = json.loads(next(Path("runs/edm/checkpoints").glob("*/state.json")).read_text())
    assert data.index_hash == state["identity"]["data (index hash)"]


def newer(path: Path, kind: migrations.Kind) -> None:
    tree = yaml.safe_load(path.read_text())
    tree.pop("seal", None)
    path.write_text(json.dumps(tree | {"format": kind.format + 1}))


def test_newer_files_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run = Path("runs/ct")
    figures = next((run / "evaluations").glob("*.json"))
    cases = [
        (run / "config.yaml", migrations.CONFIG, lambda: models.open_run(str(run))),
        (run / "run.json", migrations.RUN, lambda: record.read(str(run))),
        (Path("data/index.json"), migrations.INDEX, lambda: build.dataset(models.open_run("runs/edm").config)),
        (figures, migrations.EVALUATION, lambda: records.read(str(run / "evaluations"), STOP)),
    ]
    for path, kind, look in cases:
        before = path.read_bytes()
        look()
        newer(path, kind)
        says = rf"is an? {kind.name} of format {kind.format + 1}; this version of cmdist reads up to {kind.format}"
        with pytest.raises(FormatError, match=says) as error:
            look()
        assert path.name in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2
        path.write_bytes(before)


def test_a_newer_state_is_refused() -> None:
    tree = {"format": migrations.STATE.format + 1}
    with pytest.raises(FormatError, match=r"x/state.json is a state.json of format 4; .* reads up to 3, use a newer"):
        migrations.STATE.migrate(tree, "x/state.json")


@pytest.mark.parametrize("format_", ["2", 0, True, None, 1.5])
def test_a_format_that_is_none_is_refused(format_: object) -> None:
    with pytest.raises(FormatError, match="is none; that of a configuration is 1 to 3"):
        migrations.CONFIG.migrate({"format": format_}, "x")


def test_a_step_may_move_every_key() -> None:
    """As the next format will: files of all formats, and half-new ones by hand, come out the same."""

    def goal(tree: migrations.Tree) -> migrations.Tree:
        return {("goal" if name == "objective" else name): value for name, value in tree.items()}

    kind = migrations.Kind("configuration", (*migrations.CONFIG.steps, goal))
    new = {"goal": {"kind": "denoising", "sigma_std": 2.0}}
    oldest = {"objective": "denoising", "loss": {"sigma_std": 2.0, "solver": "heun"}, "curriculum": {"kind": "paper"}}
    older = {"objective": {"kind": "denoising", "sigma_std": 2.0}}
    formats = [{"format": 1} | oldest, {"format": 2} | oldest, {"format": 3} | older]
    for tree in (oldest, older, *formats, new, kind.stamp(new)):
        before = json.dumps(tree)
        assert kind.migrate(tree, "x") == new
        assert json.dumps(tree) == before  # in memory, on a copy


def test_a_state_of_format_2_knows_its_configuration_by_todays_names() -> None:
    """That format had a configuration in state.json, with the keys of all objectives side by side."""
    old = {"objective": "consistency_training", "loss": {"distance": "l1", "huber_c": None, "solver": "heun"}}
    old |= {"curriculum": {"kind": "doubling", "mu": 0.0, "s0": 2, "s1": 20, "total_steps": 7}, "teacher": None}
    state = {"format": 2, "config": old | {"format": 2}, "measured": {"data.url": "a", "loss.lpips_weights": "b"}}
    found = migrations.STATE.migrate(state, "x")
    assert found["measured"] == {"data.url": "a", "objective.distance.weights": "b"}
    own = {"kind": "consistency_training", "distance": {"kind": "l1"}}
    own["curriculum"] = {"kind": "doubling", "s0": 2, "s1": 20, "total_steps": 7}
    assert migrations.CONFIG.migrate(found["config"], "x") == {"objective": own}


def test_a_newer_run_is_neither_compared_nor_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    newer(Path("runs/ct/run.json"), migrations.RUN)
    for name, arguments in (("compare", ["runs/ct"]), ("checkpoints", ["copy", "runs/ct", "runs/other"])):
        with pytest.raises(FormatError, match=r"run\.json is a run\.json of format"):
            pipeline(name).main(arguments)
    assert not Path("runs/other/run.json").exists()


def test_a_copied_old_run_keeps_what_its_checkpoints_were_trained_with(old: Path, tmp_path: Path) -> None:
    run = tmp_path / "ct"
    shutil.copytree("runs/ct", run)
    (run / "config.yaml").rename(run / models.BEFORE)
    (run / "config.yaml").write_text(
        config.dump(config.parse((run / models.BEFORE).read_text(), ["noise.sigma_data=0.9"]))
    )
    pipeline("checkpoints").main(["copy", str(run), str(tmp_path / "other")])
    assert models.open_run(str(tmp_path / "other")).config.noise.sigma_data == 0.5
