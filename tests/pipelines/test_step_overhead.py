"""What a step takes beside its networks' own passes, each timed alone in turn with the step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ranks import REPOSITORY

NARROW = (
    *("network.model_channels=32", "network.head_channels=32", "network.norm_groups=by_width"),
    *("objective.distance.kind=l2", "train.precision=fp32", "train.micro_batch=8", "train.global_batch=8"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("recipe", "overrides", "rounds", "most"),
    [
        ("digits", ("network.norm_groups=by_width",), 41, 0.15),
        ("imagenet64", NARROW, 7, 0.05),
    ],
)
def test_a_step_is_little_more_than_its_passes(
    recipe: str, overrides: tuple[str, ...], rounds: int, most: float, tmp_path: Path
) -> None:
    """On an idle machine: medians of turns, but other work hits the step and its passes unlike."""
    command = [sys.executable, "pipelines/benchmark.py", "train", f"configs/{recipe}/cd.yaml", *overrides, "--passes"]
    file = tmp_path / "figures.json"
    subprocess.run(
        [*command, "--steps", str(rounds), "--warm-up", "2", "--json", str(file)], cwd=REPOSITORY, check=True
    )
    (figures,) = json.loads(file.read_text())
    assert 0 < figures["passes"]["ratio"] < 1 + most and 0 < figures["mfu"] < 1
