"""Theorems 3 and 4 through the engine: their gradient goes through a derivative, without a pass of the engine's own."""

import re
from pathlib import Path

import pytest
import torch

from ranks import train
from training import vectors, write_config

THROUGH = [
    "objective.kind=continuous_distillation",
    "objective.teacher=exact",
    "objective.gradient=through",
    "noise.c_noise=angle",
    "network.time_factor=1",
    "train.steps=3",
    "train.checkpoint_every=3",
]


@pytest.mark.parametrize("distance", ["l2", pytest.param("l1", marks=pytest.mark.slow)])
def test_their_gradient_is_autograds_at_every_zero_stage(tmp_path: Path, digits: str, distance: str) -> None:
    """By the self-check before the first step, which compares the engine's whole path with plain autograd on both
    ranks, and by the weights after three.
    """
    config, found = write_config(tmp_path, digits), []
    for stage in (0, 1, 2):
        own = [f"run.name=zero{stage}", f"train.zero_stage={stage}", f"objective.distance.kind={distance}"]
        run = train(2, tmp_path / f"{stage}.log", config, *THROUGH, *own)
        assert run.join() == [0, 0], run.text
        (difference,) = re.findall(r"differs from autograd's by ([\d.e+-]+)", run.text)
        assert float(difference) < 1e-6
        found.append(vectors(tmp_path / f"runs/zero{stage}", 3))
    for other in found[1:]:
        torch.testing.assert_close(other["master"], found[0]["master"], rtol=1e-5, atol=1e-7)
        assert float((other["exp_avg"] - found[0]["exp_avg"]).norm() / found[0]["exp_avg"].norm()) < 1e-5
