"""Spaces in which images are compared: a network, the resizing before it, and the metrics that are taken there."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation.metrics.table import METRICS
from cmdist.nets.classifier import Classifier
from cmdist.nets.inception import Inception, resizer
from cmdist.system import storage
from cmdist.system.typed import short

DINOV2 = (
    "torch.jit.trace(torch.hub.load('facebookresearch/dinov2', 'dinov2_vitl14').eval(), torch.zeros(1, 3, 224, 224))"
    ".save(FILE)"
)


@dataclass(frozen=True)
class Extractor:
    """`space` is one of METRICS; `network` takes what `prepare` makes of uint8 images (B,C,H,W) and gives features
    (B,dimensions).

    `batch` images go through it together, always as many, since the last bits depend on it.
    """

    space: str
    hash: str
    resize: str
    dimensions: int
    prepare: Callable[[Tensor], Tensor]
    network: Callable[[Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor] | None = None  # of classes, for the Inception score
    batch: int = 64

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """float32 (B,dimensions) on the CPU of uint8 images (B,C,H,W). Raises DataError if a value is not finite."""
        return torch.cat([features for features, _ in self._run(images, probabilities=False)])

    @torch.inference_mode()
    def features_and_probabilities(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Those, and the class probabilities (B,classes)."""
        features, probabilities = zip(*self._run(images, probabilities=True), strict=True)
        return torch.cat(features), torch.cat(probabilities)

    def _run(self, images: Tensor, probabilities: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch by batch, the next one being prepared while the network works."""
        batches = images.split(self.batch)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.prepare, batches[0])
            for following in (*batches[1:], None):
                prepared = coming.result()
                if following is not None:
                    coming = ahead.submit(self.prepare, following)
                features = self.network(prepared).float().cpu()
                if not bool(torch.isfinite(features).all()):
                    raise DataError(
                        f"the extractor of {self.space} gave features that are not finite (NaN or infinite)"
                    )
                yield (
                    features,
                    self.probabilities(prepared).float().cpu()
                    if probabilities and self.probabilities
                    else features[:, :0],
                )


def _entry(data: ShardedImages) -> dict[str, Any]:
    """What the index says of the data set's own extractor. Raises DataError if it has none."""
    entry: dict[str, Any] | None = data.index.get("extractor")
    if not entry:
        raise DataError(
            f"{data.url} has no feature extractor of its own, so no fd; fid and the others take Inception (--metrics)"
        )
    return entry


def own(data: ShardedImages, device: torch.device) -> Extractor:
    """The small network that lies beside a data set whose images are too small for Inception. Raises DataError."""
    net, checksum = classifier(data)
    net = net.to(device)
    return Extractor("fd", checksum, "none", int(net.head.in_features), lambda images: images.to(device), net.features)


def classifier(data: ShardedImages) -> tuple[Classifier, str]:
    """The classifier that lies beside a data set, and its checksum. Raises DataError."""
    entry = _entry(data)
    url = storage.join(data.url, entry["file"])
    try:
        content = storage.read(url)
    except FileNotFoundError as error:
        raise DataError(f"the feature extractor {url} is missing") from error
    if f"xxh3:{xxhash.xxh3_128_hexdigest(content)}" != entry["checksum"]:
        raise DataError(f"the feature extractor {url} is damaged: its checksum is not that of the index")
    try:
        return Classifier.from_state_dict(safetensors.torch.load(content)), str(entry["checksum"])
    except Exception as error:  # safetensors and torch say almost anything of what does not fit
        raise DataError(
            f"the feature extractor {url} is no classifier of this project ({short(error)}); restore it, or prepare "
            "the data set again"
        ) from error


def inception(url: str | None, space: str, device: torch.device) -> Extractor:
    """`fid` or `fid_legacy`. Raises ConfigError."""
    if url is None:
        raise ConfigError(
            f"{space} needs Inception's weights: --inception FILE or evaluation.inception, from {Inception.SOURCE}"
        )
    net = Inception(url, "clean" if space == "fid" else "legacy_tensorflow", device)
    resize = (
        "clean: Pillow bicubic to 299, not quantized"
        if space == "fid"
        else "legacy_tensorflow: bilinear inside the network"
    )
    probabilities = net.probabilities if space == "fid_legacy" else None
    return Extractor(space, net.hash, resize, Inception.DIMENSIONS, net.prepare, net.features, probabilities, net.batch)


def dinov2(url: str | None, device: torch.device) -> Extractor:
    """A TorchScript file that maps images normalized as ImageNet's (B,3,224,224) to features (B,D).
    Raises ConfigError.
    """
    if url is None:
        raise ConfigError(f"fd_dinov2 needs --dinov2 FILE or evaluation.dinov2, a file made by {DINOV2}")
    try:
        content = storage.read(url)
    except FileNotFoundError as error:
        raise ConfigError(
            f"the DINOv2 weights {url} are not there; nothing is downloaded in a job: make them by {DINOV2}"
        ) from error
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1) * 255
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    resize = resizer(224)

    def prepare(images: Tensor) -> Tensor:
        return (resize(images).to(device) - mean) / std

    try:
        net: Any = torch.jit.load(io.BytesIO(content), map_location=device).eval()
        with torch.inference_mode():
            dimensions = net(torch.zeros(1, 3, 224, 224, device=device)).shape[1]
    except Exception as error:
        said = str(error).strip().splitlines()
        raise ConfigError(
            f"{url} is no TorchScript file that takes images (B,3,224,224): {said[-1] if said else error!r}"
        ) from error
    return Extractor(
        "fd_dinov2",
        f"xxh3:{xxhash.xxh3_128_hexdigest(content)}",
        "Pillow bicubic to 224, not quantized",
        dimensions,
        prepare,
        net,
    )


def load(
    spaces: Sequence[str], data: ShardedImages | None, files: dict[str, str | None], device: torch.device
) -> list[Extractor]:
    """One for each space. `files` has the places of "inception" and "dinov2". Raises ConfigError, DataError."""
    result = []
    for space in spaces:
        if space == "fd":
            assert data is not None, "an extractor of its own lies beside a data set"
            result.append(own(data, device))
        elif space == "fd_dinov2":
            result.append(dinov2(files["dinov2"], device))
        else:
            result.append(inception(files["inception"], space, device))
    return result


def check_files(spaces: Sequence[str], data: ShardedImages, files: dict[str, str | None]) -> None:
    """The files that the extractors need are there. Raises ConfigError, DataError."""
    for space in spaces:
        if space == "fd":
            _entry(data)
        else:
            name, load = ("dinov2", dinov2) if space == "fd_dinov2" else ("inception", partial(inception, space=space))
            url = files[name]
            if url is None or not storage.exists(url):
                load(url, device=torch.device("cpu"))  # says what is missing


def usual(data: ShardedImages) -> list[str]:
    """The metric of a data set where none is asked for: fd if it has an extractor of its own, else fid."""
    return ["fd" if data.index.get("extractor") else "fid"]


def spaces(metrics: Sequence[str]) -> dict[str, list[str]]:
    """space -> its metrics among those asked for, in the order of METRICS. Raises ConfigError."""
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ConfigError(f"--metrics {unknown[0]}: {', '.join(METRICS)} are allowed")
    by_space: dict[str, list[str]] = {}
    for metric in METRICS.values():
        if metric.name in metrics:
            by_space.setdefault(metric.space, []).append(metric.name)
    return by_space
