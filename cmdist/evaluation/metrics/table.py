"""The one table of metrics: what each is called, where it is taken, what it needs, and how its figure is computed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from cmdist.evaluation.metrics import frechet, kernel, neighbours
from cmdist.evaluation.metrics.frechet import Statistics
from cmdist.evaluation.metrics.inception_score import SPLITS, InceptionScore
from cmdist.evaluation.metrics.neighbours import Rows

Need = Literal["moments", "rows", "probabilities", "classes"]


@dataclass
class Gathered:
    """What has been gathered of generated and of real images in one space: as much as the wanted metrics need.

    `features` are rows (n,D) of the generated images and `real_features` (k,D) of real ones.
    """

    statistics: Callable[[], Statistics]
    real_statistics: Statistics
    features: Rows | None
    real_features: Tensor | None
    score: InceptionScore | None
    accuracy: float | None
    device: str | torch.device

    @property
    def rows(self) -> tuple[Rows, Tensor]:
        """Features of generated and of real images."""
        assert self.features is not None and self.real_features is not None, "checked before"
        return self.features, self.real_features

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        """Both come from the same distances."""
        return neighbours.precision_recall(*self.rows, device=self.device)


def _frechet(of: Gathered) -> float:
    return frechet.frechet_distance(of.statistics(), of.real_statistics)


def _inception_score(of: Gathered) -> float:
    assert of.score is not None, "gathered where a metric needs probabilities"
    return of.score.value()


def _accuracy(of: Gathered) -> float:
    assert of.accuracy is not None, "counted where a metric needs classes"
    return of.accuracy


@dataclass(frozen=True)
class Metric:
    """A row of the table. `space` has the name of its Frechet distance; `definition` goes into the protocol record."""

    name: str
    space: str
    title: str
    better: Literal["lower", "higher"]
    needs: Need  # moments of the features, all of them, probabilities of classes, or whether the likeliest is the label
    value: Callable[[Gathered], float]
    definition: str = ""

    @property
    def distance(self) -> bool:
        """Whether it is the Frechet distance of its space."""
        return self.name == self.space


_KID = f"{kernel.SUBSETS} subsets of {kernel.SUBSET_SIZE}"
_IS = f"{SPLITS} splits"
_NEIGHBOURS = f"{neighbours.NEIGHBOURS} neighbours"

# fd: the data set's own extractor, whose classifier says what class an image is of; fid: Inception after clean-fid's
# resizing; fid_legacy: Inception as in the papers' tables, and what they take there
METRICS = {
    metric.name: metric
    for metric in (
        Metric("fd", "fd", "FD", "lower", "moments", _frechet),
        Metric("accuracy", "fd", "accuracy", "higher", "classes", _accuracy),
        Metric("fid", "fid", "FID", "lower", "moments", _frechet),
        Metric("kid", "fid", "KID", "lower", "rows", lambda of: kernel.kernel_distance(*of.rows), _KID),
        Metric("fid_legacy", "fid_legacy", "FID legacy", "lower", "moments", _frechet),
        Metric("is", "fid_legacy", "IS", "higher", "probabilities", _inception_score, _IS),
        Metric(
            "precision", "fid_legacy", "precision", "higher", "rows", lambda of: of.precision_recall[0], _NEIGHBOURS
        ),
        Metric("recall", "fid_legacy", "recall", "higher", "rows", lambda of: of.precision_recall[1], _NEIGHBOURS),
        Metric("fd_dinov2", "fd_dinov2", "FD DINOv2", "lower", "moments", _frechet),
    )
}


def need(metrics: Iterable[str], what: Need) -> list[str]:
    """Those of the metrics that need it."""
    return [metric for metric in metrics if METRICS[metric].needs == what]


def definitions(space: str) -> str:
    """What the protocol record says of a space's metrics, e.g. 'is: 10 splits; precision, recall: 3 neighbours'."""
    names: dict[str, list[str]] = {}
    for metric in METRICS.values():
        if metric.space == space and metric.definition:
            names.setdefault(metric.definition, []).append(metric.name)
    return "; ".join(f"{', '.join(of)}: {definition}" for definition, of in names.items())
