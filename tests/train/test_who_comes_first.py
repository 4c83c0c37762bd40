"""What an objective begins from or follows is looked at before anything starts."""

from pathlib import Path

import pytest

from cmdist import config
from cmdist.errors import CmdistError
from cmdist.system import cli
from cmdist.train import beforehand
from runs import make_data, make_run

REST = """
run: {{root: {root}, name: x}}
data: {{url: {root}/data, image_size: 8, channels: 1, classes: 10}}
network: {{model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8, second_time: false}}
optimizer: {{lr: 1.0e-3}}
train: {{steps: 10, global_batch: 8, micro_batch: 8, precision: fp32}}
sampling: {{times: [80.0, 1.0]}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consistency model, a denoiser, and their data."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_data(folder / "data")
    make_run(folder, "ct", data)
    make_run(folder, "edm", data, "denoising")
    return folder


@pytest.mark.parametrize(
    ("objective", "init", "sentence"),
    [
        (
            "progressive_distillation, teacher: {root}/ct",
            "teacher",
            "ct is no denoiser, its objective",
        ),
        (
            "consistency_mid_training, teacher: {root}/ct",
            "teacher",
            "ct is no denoiser, its objective",
        ),
        ("truncated_consistency_training", "{root}/ct", "key 'objective.first' is missing"),
        ("truncated_consistency_training, first: {root}/none", "{root}/none", "none"),
        ("truncated_consistency_training, first: {root}/edm", "{root}/edm", "edm"),
        ("truncated_consistency_training, first: {root}/ct", "{root}/edm", "the student begins as the first stage"),
        ("alpha_flow", "{root}/edm", "it needs network.second_time true"),
    ],
)
def test_who_cannot_come_first_is_one_sentence(root: Path, objective: str, init: str, sentence: str) -> None:
    text = "objective: {{kind: " + objective + "}}\ninit: " + init + REST
    with pytest.raises(CmdistError) as caught, cli.before_start():
        beforehand.check_weights(config.parse(text.format(root=root)), str(root / "x"), "auto")
    assert sentence in str(caught.value) and caught.value.exit_code == 2
    assert not (root / "x").exists()
