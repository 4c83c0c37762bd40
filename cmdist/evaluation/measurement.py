"""Generated images, measured: features stream by in parts, and the figures of a space are taken from them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import cmdist
from cmdist import seeding
from cmdist.errors import DataError
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.generation import Sample, Task, generate
from cmdist.evaluation.metrics import frechet, table
from cmdist.evaluation.metrics.inception_score import InceptionScore
from cmdist.evaluation.metrics.table import METRICS, Gathered
from cmdist.evaluation.parts import Arrays, Parts
from cmdist.evaluation.references import Reference
from cmdist.system import distributed
from cmdist.tracking.environment import git_commit

PIECE = 1024  # features that are added to the moments together


class Features:
    """Rows (n,D) float32 in a file that no folder shows;
    taken row by row, so that n does not fit into memory need not matter.
    """

    def __init__(self, dimensions: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this object)
        self._dimensions = dimensions
        self._count = 0

    def append(self, rows: Tensor) -> None:
        """Add rows (B,D) at the end."""
        self._file.write(rows.numpy().tobytes())
        self._file.flush()
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Tensor) -> Tensor:
        size = 4 * self._dimensions
        rows = b"".join(os.pread(self._file.fileno(), size, i * size) for i in index.tolist())
        return torch.frombuffer(bytearray(rows), dtype=torch.float32).view(-1, self._dimensions)


@dataclass(frozen=True)
class Collected:
    """What rank 0 knows before figures are taken: a space for each that was wanted, images and hash as in Measured."""

    spaces: Sequence["Space"]
    images: Tensor
    sha256: str


@dataclass(frozen=True)
class Measured:
    """What rank 0 knows after a measurement:
    figures by metric, the first `keep` images uint8, and one hash over all images.
    """

    figures: dict[str, float]
    images: Tensor
    sha256: str


def check(n: int, extractor: Extractor, metrics: Sequence[str], of: str = "") -> None:
    """Raise DataError, which names what they are images `of`, if n (0: nobody knows how many) are too few for the
    metrics of a space.
    """
    if n and extractor.space in metrics:
        try:
            frechet.check_count(n, extractor.dimensions)
        except DataError as error:
            raise DataError(f"{of}: {error}" if of else str(error)) from None


def measure(
    task: Task,
    sample: Sample,
    measures: Sequence[tuple[Extractor, Sequence[str], Reference | None]],
    folder: str,
    world: distributed.World,
    batch: int = 1024,
    keep: int = 0,
    progress: Callable[[int], object] = lambda images: None,
) -> Measured | None:
    """`collect`, and the figures on rank 0."""
    outcome = collect(task, sample, measures, folder, world, batch, keep, progress)
    if outcome is None:
        return None
    figures = {metric: value for space in outcome.spaces for metric, value in space.figures().items()}
    return Measured(figures, outcome.images, outcome.sha256)


def collect(
    task: Task,
    sample: Sample,
    measures: Sequence[tuple[Extractor, Sequence[str], Reference | None]],
    folder: str,
    world: distributed.World,
    batch: int = 1024,
    keep: int = 0,
    progress: Callable[[int], object] = lambda images: None,
) -> Collected | None:
    """Generate the task's images on all ranks and gather what the wanted metrics need; all ranks must call.
    The result is rank 0's.

    `measures`: for each space its extractor, its metrics and, on rank 0, its reference. Parts below `folder` outlive a
    kill: the same call goes on from them, on any number of ranks; the caller removes them when the figures are safe.
    `progress` is told the number of images that this rank has just made, or found made.
    """
    blocks = task.blocks(
        128 if len(task.seeds) < 16_384 else 512
    )  # short ones are shared evenly, long ones keep a GPU busier
    parts = Parts(folder, len(blocks))

    def block(part: int) -> Arrays:
        batches, digests = [], []
        for group, images in generate(task, sample, world.device, batch, blocks[part]):
            used = images[task.part(group)].cpu()
            batches.append(used)
            digests.append(np.frombuffer(hashlib.sha256(used.numpy().tobytes()).digest(), dtype=np.uint8))
            progress(len(used))
        images = torch.cat(batches)
        arrays = {
            "digests": np.stack(digests),
            "images": images[: max(0, keep - task.before(blocks[part].start))].numpy(),
        }
        for extractor, metrics, _ in measures:
            scored, classed = table.need(metrics, "probabilities"), table.need(metrics, "classes")
            if scored or classed:
                features, probabilities = extractor.features_and_probabilities(images)
                if scored:
                    arrays[f"{extractor.space}/probabilities"] = probabilities.numpy()
                if classed:
                    first = task.seeds.start + task.before(blocks[part].start)
                    labels = torch.tensor([task.label(seed) for seed in range(first, first + len(images))])
                    arrays[f"{extractor.space}/right"] = (probabilities.argmax(1) == labels).numpy()
            else:
                features = extractor.features(images)
            arrays[f"{extractor.space}/features"] = features.numpy()
        return arrays

    def count(part: int) -> int:
        return min(len(task.seeds), task.before(blocks[part].stop)) - task.before(blocks[part].start)

    parts.complete(block, world, lambda part: progress(count(part)))
    if not world.first:
        return None
    spaces = [Space(len(task.seeds), *of, world.device) for of in measures]
    kept: list[Tensor] = []
    digest = hashlib.sha256()
    for arrays in parts.read():
        digest.update(arrays["digests"].tobytes())
        if not kept or len(arrays["images"]):  # what stays among large pieces that come and go would cut the heap up
            kept.append(torch.from_numpy(arrays["images"]))
        for space in spaces:
            space.add(arrays)
    return Collected(spaces, torch.cat(kept), digest.hexdigest())


class Space:
    """What is gathered of n images in one extractor's space, for the metrics that are wanted there."""

    def __init__(
        self,
        n: int,
        extractor: Extractor,
        metrics: Sequence[str],
        reference: Reference | None,
        device: str | torch.device,
    ) -> None:
        assert reference is not None, "on rank 0"
        self._name, self._metrics, self._reference, self._device = extractor.space, metrics, reference, device
        self._moments = frechet.Moments(extractor.dimensions, device)
        self._waiting, self._filled = (
            torch.empty(PIECE, extractor.dimensions),
            0,
        )  # one buffer, since new ones would fragment the heap
        self._rows = Features(extractor.dimensions) if table.need(metrics, "rows") else None
        self._n = n
        self._score: InceptionScore | None = None
        self._right = 0  # images that the extractor takes for one of their class

    def add(self, arrays: Arrays) -> None:
        """A part's features."""
        features = torch.from_numpy(arrays[f"{self._name}/features"])
        if table.need(self._metrics, "moments"):
            self._add_rows(features)
        if self._rows is not None:
            self._rows.append(features)
        if table.need(self._metrics, "probabilities"):
            probabilities = torch.from_numpy(arrays[f"{self._name}/probabilities"])
            self._score = self._score or InceptionScore(self._n, probabilities.shape[1])
            self._score.add(probabilities)
        if table.need(self._metrics, "classes"):
            self._right += int(arrays[f"{self._name}/right"].sum())

    def _add_rows(self, rows: Tensor) -> None:
        while len(rows):
            fitting = rows[: PIECE - self._filled]
            self._waiting[self._filled : self._filled + len(fitting)] = fitting
            self._filled, rows = self._filled + len(fitting), rows[len(fitting) :]
            if self._filled == PIECE:
                self._add_waiting()

    def _add_waiting(self) -> None:
        self._moments.add(self._waiting[: self._filled])
        self._filled = 0

    def figures(self) -> dict[str, float]:
        """By metric."""
        real = self._reference
        accuracy = self._right / self._n if table.need(self._metrics, "classes") else None
        gathered = Gathered(
            self.statistics, real.statistics, self._rows, real.features, self._score, accuracy, self._device
        )
        return {metric: METRICS[metric].value(gathered) for metric in self._metrics}

    def statistics(self) -> frechet.Statistics:
        """Moments of the features of all images."""
        self._add_waiting()
        return self._moments.statistics()


def bootstrap(images: Tensor, n: int, seed: int) -> Tensor:
    """Draw n of the given uint8 images, with replacement: what a perfect copy of the data would score."""
    return images[torch.randint(len(images), (n,), generator=seeding.generator("cpu", seed, "bootstrap"))]


def matched_gaussian(images: Tensor, n: int, seed: int) -> Tensor:
    """Draw n uint8 images from the Gaussian with the pixels' mean and covariance:
    what knowing two moments alone would score.
    """
    flat = images.flatten(1).double()
    weights = torch.randn(
        (n, len(flat)), dtype=torch.float64, generator=seeding.generator("cpu", seed, "matched gaussian")
    )
    # exact, without forming the covariance
    pixels = flat.mean(dim=0) + weights @ (flat - flat.mean(dim=0)) / (len(flat) - 1) ** 0.5
    return (pixels + 0.5).clamp(0, 255).to(torch.uint8).view(n, *images.shape[1:])


def digest(content: Mapping[str, object]) -> str:
    """16 hexadecimal digits that name a JSON content: two figures may be compared if their protocols have the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def code_version() -> str:
    """The package's version, with the commit of the checkout that it runs from if there is one."""
    commit = git_commit()
    return f"{cmdist.__version__}+{commit}" if commit else cmdist.__version__
