"""Spaces in which images are compared: the networks that make features there, and where they are from."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import outside
from cmdist.evaluation.extractor import Extractor as Extractor
from cmdist.evaluation.extractor import inside
from cmdist.evaluation.metrics.table import METRICS
from cmdist.nets.classifier import Classifier
from cmdist.nets.inception import FILE, Inception, resizer
from cmdist.system import storage
from cmdist.system.typed import short

DINOV2 = (
    "torch.jit.trace(torch.hub.load('facebookresearch/dinov2', 'dinov2_vitl14').eval(), torch.zeros(1, 3, 224, 224))"
    ".save(FILE)"
)


@dataclass(frozen=True)
class Files:
    """Places of networks in TorchScript, and the checksums (sha256:...) of those that may run."""

    inception: str | None = None
    dinov2: str | None = None
    trusted: Sequence[str] = ()


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
    compute = inside("fd", lambda images: images.to(device), net.features, lambda images: net(images).softmax(1))
    return Extractor("fd", checksum, "none", int(net.head.in_features), compute)


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


def inception(folder: Path, url: str, space: str, device: torch.device) -> Extractor:
    """`fid` or `fid_legacy`, by the file FILE of nets/inception.py in a folder, which came from `url`.
    Raises ConfigError.
    """
    net = Inception(folder, url, "clean" if space == "fid" else "legacy_tensorflow", device)
    resize = (
        "clean: Pillow bicubic to 299, not quantized"
        if space == "fid"
        else "legacy_tensorflow: bilinear inside the network"
    )
    probabilities = net.probabilities if space == "fid_legacy" else None
    compute = inside(space, net.prepare, net.features, probabilities, net.batch)
    return Extractor(space, net.hash, resize, Inception.DIMENSIONS, compute, net.batch)


def dinov2(folder: Path, url: str, space: str, device: torch.device) -> Extractor:
    """A TorchScript file that maps images normalized as ImageNet's (B,3,224,224) to features (B,D), in a folder.
    Raises ConfigError.
    """
    content = (folder / FILE).read_bytes()
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
    checksum = f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"
    return Extractor(space, checksum, "Pillow bicubic to 224, not quantized", dimensions, inside(space, prepare, net))


def digest(content: bytes) -> str:
    """The checksum by which a file is trusted."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _loader(space: str) -> str:
    return f"{__name__}:{(dinov2 if space == 'fd_dinov2' else inception).__name__}"


def _content(space: str, files: Files) -> tuple[bytes, str]:
    """A file of TorchScript that may run, and where it is from. Raises ConfigError if there is none."""
    own = space == "fd_dinov2"
    url = files.dinov2 if own else files.inception
    if url is None:
        raise ConfigError(
            f"fd_dinov2 needs --dinov2 FILE or evaluation.dinov2, a file made by {DINOV2}"
            if own
            else f"{space} needs Inception's weights: --inception FILE or evaluation.inception, from {Inception.SOURCE}"
        )
    try:
        content = storage.read(url)
    except FileNotFoundError as error:
        raise ConfigError(
            f"the DINOv2 weights {url} are not there; nothing is downloaded in a job: make them by {DINOV2}"
            if own
            else f"the Inception weights {url} are not there; no job downloads them: get them from {Inception.SOURCE}"
        ) from error
    if (checksum := digest(content)) not in files.trusted:
        raise ConfigError(
            f"{url} is TorchScript, a program that would run as you; if you know where it is from, trust this one: "
            f"--trust {checksum}, or evaluation.trusted: [{checksum}]"
        )
    return content, url


def load(spaces: Sequence[str], data: ShardedImages | None, files: Files, device: torch.device) -> list[Extractor]:
    """One for each space; those from a file run in a process that can write nothing. Raises ConfigError, DataError."""
    made: dict[str, Extractor] = {}
    for space in spaces:
        if space == "fd":
            assert data is not None, "an extractor of its own lies beside a data set"
            made[space] = own(data, device)
        elif space not in made:
            loader = _loader(space)
            of_file = [other for other in spaces if other != "fd" and _loader(other) == loader]
            found = outside.extractors(loader, *_content(space, files), of_file, device)
            made |= zip(of_file, found, strict=True)
    return [made[space] for space in spaces]


def check_files(spaces: Sequence[str], data: ShardedImages, files: Files) -> None:
    """The files that the extractors need are there and may run. Raises ConfigError, DataError."""
    for space in spaces:
        if space == "fd":
            _entry(data)
        else:
            _content(space, files)


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
