"""The table of metrics: a row is all that a metric needs, and what the protocol says of it stays as it is."""

from pathlib import Path

import pytest
import torch

from cmdist.errors import ConfigError
from cmdist.evaluation import extractors, measurement, references
from cmdist.evaluation.extractor import inside
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.generation import Task
from cmdist.evaluation.metrics import table
from cmdist.evaluation.metrics.frechet import Moments
from cmdist.evaluation.metrics.table import METRICS, Gathered, Metric
from cmdist.evaluation.references import Reference
from cmdist.report import comparison
from cmdist.system.distributed import World

CODE = Path(__file__).parents[2] / "cmdist"


def test_the_definitions_in_protocol_records_are_those_of_earlier_figures() -> None:
    """Another word here, and no figure could be compared with one of before."""
    assert table.definitions("fid") == "kid: 100 subsets of 1000"
    assert table.definitions("fid_legacy") == "is: 10 splits; precision, recall: 3 neighbours"
    assert table.definitions("fd") == table.definitions("fd_dinov2") == ""


def test_each_space_has_a_frechet_distance_of_its_name() -> None:
    assert {metric.space for metric in METRICS.values()} == {m.name for m in METRICS.values() if m.distance}


def test_there_is_one_table() -> None:
    named = [path for path in CODE.rglob("*.py") if "\nMETRICS" in path.read_text() or "NEED_ROWS" in path.read_text()]
    assert [path.name for path in named] == ["table.py"]


def test_one_row_makes_a_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mean distance of the features from the mean of real ones: asked for, measured, titled, ordered, compared."""

    def spread(of: Gathered) -> float:
        made, real = of.rows
        return float((made[torch.arange(len(made))] - real.mean(dim=0)).norm(dim=1).mean())

    monkeypatch.setitem(METRICS, "spread", Metric("spread", "fid", "Spread", "higher", "rows", spread, "2-norm"))
    assert extractors.spaces(["spread", "fid"]) == {"fid": ["fid", "spread"]}
    assert table.definitions("fid") == "kid: 100 subsets of 1000; spread: 2-norm"
    with pytest.raises(ConfigError, match="fd_dinov2, spread are allowed"):
        extractors.spaces(["psnr"])
    torch.manual_seed(0)
    network = torch.nn.Linear(16, 16)
    compute = inside("fid", lambda images: images.flatten(1).float() / 255, network)
    extractor = Extractor("fid", "x", "none", 16, compute)
    moments, rows = Moments(16), torch.randn(64, 16)
    moments.add(rows)
    real = Reference(moments.statistics(), rows, references.describe(extractor))
    task = Task(range(100), (1, 4, 4), 0, 1)
    made = measurement.measure(
        task, lambda noises, labels: noises[0], [(extractor, ["fid", "spread"], real)], str(tmp_path), World(), keep=100
    )
    assert made is not None
    expected = float((extractor.features(made.images) - rows.mean(dim=0)).norm(dim=1).mean())
    assert made.figures["spread"] == pytest.approx(expected, rel=1e-6)
    assert comparison.title("spread_1step") == "Spread one-step" and comparison.higher_is_better("spread_1step")
    names = ["spread_1step", "recall_1step", "fd_dinov2_1step", "unknown_1step", "fd_1step", "kid_2step", "kid_1step"]
    assert sorted(names, key=comparison.order) == [
        *("fd_1step", "fd_dinov2_1step", "kid_1step", "kid_2step", "recall_1step", "spread_1step", "unknown_1step")
    ]
