"""The shipped recipes of ImageNet-64 and LSUN-256 on two ranks, with the networks' real topology and few channels,
LPIPS included.

VGG's weights are random here (the real ones are a download), so losses mean nothing beside other losses, but gradients
are real ones.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmdist.data.preparing.shards import write_dataset
from cmdist.data.preparing.sources.base import Source
from ranks import REPOSITORY, Ranks, traced, train
from training import committed, vectors
from vgg import write_vgg


def arguments(folder: Path, name: str) -> list[str]:
    """Of pipelines/train.py: the recipe, narrow, on eight pictures that are made here."""
    size, classes = (64, 1000) if name == "imagenet64" else (256, 0)
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 128, (8, 4, 4, 3)).astype(np.uint8) + np.array(
        [127, 0, 64], np.uint8
    )  # of one tint, which is learned first

    def image(i: int) -> Any:
        return coarse[i % 8].repeat(size // 4, axis=0).repeat(size // 4, axis=1)

    labels = np.arange(classes) if classes else None
    source = Source(name, size, 3, "none", max(8, classes), image, labels, tuple(f"n{i:08d}" for i in range(classes)))
    write_dataset(str(folder / "data"), source)
    write_vgg(folder / "vgg.pth")
    return [
        str(REPOSITORY / "configs" / name / "cd.yaml"),
        *(
            "network.model_channels=8",
            "network.head_channels=8",
            "objective.teacher=exact",
            "init=null",
            f"objective.distance.weights={folder}/vgg.pth",
        ),
        *(
            f"data.url={folder}/data",
            f"run.root={folder}/runs",
            "tracking.uri=none",
            "data.workers=0",
            "train.ema=[0.9]",
        ),
        *("train.global_batch=2", "train.micro_batch=1", "train.self_check=false"),
    ]


@pytest.mark.parametrize("name", ["imagenet64", pytest.param("lsun_bedroom256", marks=pytest.mark.slow)])
def test_one_step_of_distillation_with_lpips(tmp_path: Path, name: str) -> None:
    ranks = train(2, tmp_path / "log", *arguments(tmp_path, name), "train.steps=1")
    assert ranks.join(200) == [0, 0], ranks.text
    assert committed(tmp_path / "runs" / "cd", 1)
    moments = vectors(tmp_path / "runs" / "cd", 1)["exp_avg"]
    assert moments.isfinite().all() and moments.abs().max() > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["imagenet64", "lsun_bedroom256"])
def test_the_loss_falls_over_20_steps(tmp_path: Path, name: str) -> None:
    """With N = 2 there is one pair of noise levels, so the goal stands still and a falling loss is learning.

    One Euler step from 80 to 0.002 is the teacher's picture; Heun's second slope, (x - D(x)) / 0.002, would throw the
    goal far away.
    """
    more = [
        "train.steps=20",
        "objective.curriculum.n_timesteps=2",
        "objective.solver=euler",
        "optimizer.lr=0.01",
        "optimizer.kind=adam",
    ]
    ranks = Ranks(2, tmp_path / "log", traced, str(tmp_path / "trace"), [*arguments(tmp_path, name), *more])
    assert ranks.join(800) == [0, 0], ranks.text
    entries = [entry for path in tmp_path.glob("trace*.json") for entry in json.loads(path.read_text())]
    losses = np.array([entry["loss"] for entry in sorted(entries, key=lambda entry: entry["g"])]).reshape(20, 2).mean(1)
    assert losses[-5:].mean() < 0.5 * losses[:5].mean(), losses
