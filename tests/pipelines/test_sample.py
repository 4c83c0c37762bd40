"""Pictures of chosen seeds and classes, and of what lies between two seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmdist import build, quality
from cmdist.errors import ConfigError
from cmdist.evaluation import generation
from cmdist.evaluation.generation import Row
from ranks import pipeline
from runs import call, make_data, make_run

sample = pipeline("sample")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder, "ct", make_data(folder / "data"))


def test_seeds_and_labels_make_those_images(run: Path, tmp_path: Path) -> None:
    call(sample.main, run, "--steps", 1, "--seeds", 3, 14, "--labels", 0, 9, "--out", tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").height > 80
    model = build.open_model(str(run))
    (sampler,) = quality.samplers(model.config, model.denoiser(), ["1"])
    shape, cpu = quality.shape(model.config), torch.device("cpu")
    images = Row([3, 14]).images(sampler, shape, 9, 10, cpu)
    alone = Row([14]).images(sampler, shape, 9, 10, cpu)
    assert (images[1].int() - alone[0].int()).abs().max() <= 1 and not torch.equal(images[0], images[1])
    usual = generation.images(generation.Task(range(14, 15), shape, 10, 1), sampler.sample, cpu)
    own = Row([14]).images(sampler, shape, None, 10, cpu)  # of its own class, 4, as in an evaluation
    assert (usual.int() - own.int()).abs().max() <= 1 and not torch.equal(own, alone)


def test_a_row_leads_from_one_seed_to_another(run: Path, tmp_path: Path) -> None:
    model = build.open_model(str(run))
    for steps, times in (("1", None), ("2", [80.0, 1.0])):
        (sampler,) = quality.samplers(model.config, model.denoiser(), [steps], times)
        shape, cpu = quality.shape(model.config), torch.device("cpu")
        between = Row([], [3, 14]).images(sampler, shape, 5, 10, cpu).int()
        ends = Row([3, 14]).images(sampler, shape, 5, 10, cpu).int()
        assert len(between) == 10
        assert (between[[0, -1]] - ends).abs().max() <= 1
        near = (between[1:] - between[:-1]).abs().float().mean((1, 2, 3))
        assert near.max() < (ends[1] - ends[0]).abs().float().mean() * 0.6  # no jump
    call(sample.main, run, "--interpolate", 3, 14, "--out", tmp_path / "b.png")
    assert np.asarray(Image.open(tmp_path / "b.png")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seeds", -1), "numbers of 0 or more"),
        (("--seeds", 1, "--interpolate", 1, 2), "goes without --interpolate"),
        (("--interpolate", 1, -2), "two seeds of 0 or more"),
        (("--labels", 10), r"--labels 10: 0 ... 9 are allowed"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(run: Path, tmp_path: Path, arguments: tuple, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        call(sample.main, run, *arguments, "--out", tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()
