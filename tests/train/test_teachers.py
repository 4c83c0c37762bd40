"""What a configuration names is looked at before a run starts: a teacher, a helper."""

from pathlib import Path

import pytest

from cmdist import config
from cmdist.errors import CheckpointError, ConfigError
from cmdist.train import beforehand
from runs import make_data, make_run
from training import write_config

TCM = ["objective.kind=truncated_consistency_training", "sampling.times=[80.0, 1.0]"]
PD = ["objective.kind=progressive_distillation", "init=teacher"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    data = make_data(root / "data", extractor=False)
    make_run(root / "runs", "edm", data, objective="denoising")
    make_run(root / "runs", "ct", data)
    return root


def check(root: Path, *overrides: str) -> None:
    made = config.load(write_config(root, str(root / "data")), overrides)
    beforehand.check_weights(made, str(root / "runs/new"), "auto")


def test_a_teacher_is_a_denoiser_of_the_same_images(root: Path) -> None:
    teacher = f"objective.teacher={root}/runs"
    check(root, *PD, f"{teacher}/edm")
    with pytest.raises(ConfigError, match=r"ct is no denoiser, its objective is consistency_training; a teacher must"):
        check(root, *PD, f"{teacher}/ct")
    with pytest.raises(ConfigError, match=r"edm has data.classes 10, this run has 0; they must be equal"):
        check(root, *PD, f"{teacher}/edm", "data.classes=0")
    with pytest.raises(CheckpointError, match=r"nowhere is not a run folder"):
        check(root, *PD, f"{teacher}/nowhere")


def test_a_second_stage_needs_a_first_that_is_a_consistency_model_of_the_same_images(root: Path) -> None:
    def second(first: str, *more: str) -> None:
        check(root, *TCM, f"objective.first={root}/runs/{first}", f"init={root}/runs/{first}", *more)

    second("ct")
    with pytest.raises(ConfigError, match=r"objective.first .*edm is no consistency model, its objective is denoising"):
        second("edm")
    with pytest.raises(ConfigError, match=r"objective.first .*ct has data.classes 10, this run has 0"):
        second("ct", "data.classes=0")
    with pytest.raises(CheckpointError, match=r"nowhere is not a run folder"):
        second("nowhere")
