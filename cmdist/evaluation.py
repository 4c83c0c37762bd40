"""Features of generated images and the Frechet distance between them and real ones: the only door to clean-fid."""

import hashlib
import io
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import cmdist
from cmdist import distributed, seeding, storage, torchvision_ops
from cmdist.errors import DataError
from cmdist.generation import Sample, Task, generate

torchvision_ops.declare_missing()
from cleanfid import fid  # noqa: E402  (imports torchvision)

Extract = Callable[[Tensor], Tensor]  # images uint8 (B,C,H,W) -> features (B,D)
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Generated:
    """What rank 0 knows after a generation: features (n,D), the first `keep` images uint8, and one hash over all images."""

    features: Array
    images: Tensor
    sha256: str


def measure(
    task: Task,
    sample: Sample,
    extract: Extract,
    world: distributed.World,
    batch: int = 1024,
    keep: int = 0,
    progress: Callable[[int], object] = lambda images: None,
) -> Generated:
    """Generate the task's images on all ranks and gather their features in order of seed; all ranks must call.

    `progress` is told the number of images that this rank has just made.
    """
    mine: list[tuple[int, Array, Tensor, bytes]] = []
    for group, images in generate(task, sample, world.device, batch, world.rank, world.size):
        part = task.part(group)
        with torch.inference_mode():
            features = extract(images)[part].double().cpu().numpy()
        used = images[part].cpu()
        wanted = keep - max(0, group * len(images) - task.seeds.start)
        mine.append((group, features, used[: max(0, wanted)].clone(), hashlib.sha256(used.numpy().tobytes()).digest()))
        progress(len(used))
    parts = sorted((part for rank in distributed.gather(mine, world.control) for part in rank), key=lambda part: part[0])
    digest = hashlib.sha256(b"".join(part[3] for part in parts)).hexdigest()
    return Generated(np.concatenate([part[1] for part in parts]), torch.cat([part[2] for part in parts]), digest)


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D,D), float64, of the features of n images."""

    n: int
    mean: Array
    covariance: Array

    @property
    def hash(self) -> str:
        """Identity of these numbers, for the protocol record."""
        return "sha256:" + hashlib.sha256(b"%d/" % self.n + self.mean.tobytes() + self.covariance.tobytes()).hexdigest()

    def save(self, url: str) -> None:
        """Write as an npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, n=np.int64(self.n), mean=self.mean, covariance=self.covariance)
        storage.write(url, buffer.getvalue())


def load_statistics(url: str) -> Statistics:
    """Read what `Statistics.save` wrote. Raises FileNotFoundError, DataError."""
    data = storage.read(url)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Statistics(int(arrays["n"]), arrays["mean"], arrays["covariance"])
    except Exception as error:
        raise DataError(f"{url} does not hold feature statistics (n, mean, covariance); remove it and they are made again") from error


def dimensions(extract: Extract, images: Tensor) -> int:
    """The number of features that `extract` gives for an image."""
    with torch.inference_mode():
        return int(extract(images).shape[1])


def check_count(n: int, dimensions: int) -> None:
    """Raise DataError if n images are too few for a covariance of `dimensions` features."""
    if n < 2 * dimensions:
        raise DataError(
            f"{n} images are too few for a Frechet distance in {dimensions} features: at least {2 * dimensions} are needed, 5000 are usual"
        )


def statistics(features: Array) -> Statistics:
    """Mean and unbiased covariance of features (n,D). Raises DataError if n is too small for D."""
    check_count(*features.shape)
    features = np.asarray(features, dtype=np.float64)
    return Statistics(len(features), features.mean(axis=0), np.cov(features, rowvar=False))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), by clean-fid's function."""
    return float(fid.frechet_distance(a.mean, a.covariance, b.mean, b.covariance))


def extract_all(images: Iterable[Tensor], extract: Extract) -> Array:
    """Features (n,D) of uint8 images that come in pieces (B,C,H,W)."""
    with torch.inference_mode():
        return np.concatenate([extract(piece).double().cpu().numpy() for piece in images])


def bootstrap(images: Tensor, n: int, seed: int) -> Tensor:
    """Draw n of the given uint8 images, with replacement: what a perfect copy of the data would score."""
    return images[torch.randint(len(images), (n,), generator=seeding.generator("cpu", seed, "bootstrap"))]


def matched_gaussian(images: Tensor, n: int, seed: int) -> Tensor:
    """Draw n uint8 images from the Gaussian with the pixels' mean and covariance: what knowing two moments alone would score."""
    flat = images.flatten(1).double()
    weights = torch.randn((n, len(flat)), dtype=torch.float64, generator=seeding.generator("cpu", seed, "matched gaussian"))
    pixels = flat.mean(dim=0) + weights @ (flat - flat.mean(dim=0)) / (len(flat) - 1) ** 0.5  # exact, without forming the covariance
    return (pixels + 0.5).clamp(0, 255).to(torch.uint8).view(n, *images.shape[1:])


def identity(content: Mapping[str, object]) -> str:
    """16 hexadecimal digits that name a JSON content: two figures may be compared if their protocols have the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def code_version() -> str:
    """The package's version, with the commit of the checkout that it runs from if there is one."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return cmdist.__version__
    return f"{cmdist.__version__}+{commit.stdout.strip()}" if commit.returncode == 0 else cmdist.__version__
