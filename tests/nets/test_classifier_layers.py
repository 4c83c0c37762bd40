"""The perceptual distance through a data set's own classifier."""

from pathlib import Path

import pytest
import torch

from cmdist import build, config, models
from cmdist.core.distances import Perceptual
from cmdist.data.images import open_dataset
from cmdist.errors import DataError
from cmdist.nets.classifier import Classifier, Layers
from cmdist.plan import plan
from cmdist.train import beforehand
from runs import make_data

TEXT = """
objective: {{kind: {kind}, distance: {{kind: features}}}}
run: {{name: a}}
data: {{url: {url}, image_size: 8, channels: 1, classes: 10}}
network: {{model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8}}
optimizer: {{lr: 1.0e-3}}
train: {{steps: 2, global_batch: 8, micro_batch: 8, precision: fp32}}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_data(tmp_path_factory.mktemp("data") / "set"))


def distance(url: str) -> Perceptual:
    made = config.parse(TEXT.format(kind="consistency_training", url=url))
    found = build.distance(made, made.objective.distance)  # type: ignore[attr-defined]
    assert isinstance(found, Perceptual)
    return found


def test_it_is_written_out_in_one_loop(url: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    body, h = build._classifier(url).body, [x, y]
    total = torch.zeros(3)
    for part in list(body)[:8]:
        h = [part(each) for each in h]
        if isinstance(part, torch.nn.ReLU):
            a, b = (each / (each.square().sum(1, keepdim=True) + 1e-10).sqrt() for each in h)
            total += (a - b).square().sum(1).mean((1, 2))
    torch.testing.assert_close(distance(url)(x, y), total)
    assert distance(url)(x, x).abs().max() == 0


def test_it_bends_as_its_second_derivative_says(url: str) -> None:
    torch.manual_seed(0)
    exact = Layers(build._classifier(url).double())
    x, v, step = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), 1e-4
    bent = (distance(url).curvature(x, v) * v).flatten(1).sum(1)
    there, forward = x.double(), step * v.double()
    along = (exact(there, there + forward) + exact(there, there - forward)) / step**2
    torch.testing.assert_close(bent, along.float(), rtol=1e-3, atol=1e-5)


def test_it_belongs_to_what_a_run_is_and_is_planned(url: str, tmp_path: Path) -> None:
    made = config.parse(TEXT.format(kind="continuous_training", url=url))
    checksum = open_dataset(url).index["extractor"]["checksum"]
    assert models.measured(made, "x")["objective.distance.extractor"] == checksum
    assert (
        plan(made, 1).flops
        > plan(config.parse(TEXT.format(kind="continuous_training", url=url), ["objective.distance.kind=l2"]), 1).flops
    )
    bare = make_data(tmp_path / "bare", extractor=False)
    with pytest.raises(DataError, match="has no feature extractor of its own"):
        beforehand.check_weights(
            config.parse(TEXT.format(kind="consistency_training", url=bare)), str(tmp_path), "auto"
        )


def test_nothing_of_it_is_trained(url: str) -> None:
    assert not any(p.requires_grad for p in Layers(Classifier(1, 10)).parameters())
