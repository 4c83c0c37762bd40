"""Guidance on real digits, by the recipes as they are shipped: about five minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ranks import REPOSITORY

N = 2000


def figures(run: Path, metric: str) -> dict[float, float]:
    """By scale."""
    records = [json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")]
    return {
        record["sampling"].get("guidance", {"scale": 1.0})["scale"]: value
        for record in records
        for name, value in record["metrics"].items()
        if name == metric
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_guided_teacher_is_recognised_more_often_and_its_student_in_one_step_too(tmp_path: Path) -> None:
    def call(name: str, *arguments: object) -> None:
        command = [sys.executable, f"pipelines/{name}.py", *map(str, arguments)]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=900)

    def train(recipe: str, name: str, *more: str) -> Path:
        keys = [f"data.url={tmp_path}/data", f"run.root={tmp_path}", f"run.name={name}", "tracking.uri=none"]
        call("train", f"configs/digits/{recipe}.yaml", *keys, "train.glance_every=0", *more)
        return tmp_path / name

    def evaluate(run: Path, *more: str) -> None:
        call("evaluate", run, "--n", N, "--metrics", "accuracy", *more)

    call("prepare_data", "digits", "--out", tmp_path / "data")
    teacher = train("edm_null", "edm_null")
    for scale in ("1", "1.5"):
        evaluate(teacher, "--steps", "heun", "--guidance", scale)
    of_teacher = figures(teacher, "accuracy_ode")
    assert of_teacher[1.5] > of_teacher[1.0] + 0.03 and of_teacher[1.5] > 0.98
    plain = train("cd_guided", "cd", f"objective.teacher={teacher}", "objective.guidance=1")
    guided = train("cd_guided", "cd_guided", f"objective.teacher={teacher}")
    for run in (plain, guided):
        evaluate(run, "--steps", "1")
    of_plain, of_guided = (figures(run, "accuracy_1step")[1.0] for run in (plain, guided))
    assert of_guided > of_plain + 0.02 and of_guided > 0.98
