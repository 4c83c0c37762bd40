"""What generated images are measured against:
moments and some features of real images, made once from shards, or imported.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmdist.data.images import ShardedImages
from cmdist.errors import CmdistError, DataError
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.metrics.frechet import Moments, Statistics
from cmdist.evaluation.parts import Parts
from cmdist.system import storage
from cmdist.system.distributed import World
from cmdist.system.typed import Arrays, Document, Shape, array, arrays_of, short

# features that are kept for KID, precision and recall: those of the first images, as many as ADM's files hold
KEPT = 10_000
PIECE = 512  # images that are decoded together
REMEDY = "take another file, or remove it, and the statistics are made again from the data set"
_TOLERANCE = 1e-5  # of a covariance, relative to its largest value; files may hold fp32
UNITS = 64  # parts that a data set is cut into


class _Described(Shape):
    space: str
    extractor: str
    resize: str
    image_size: int
    hash: str | None = None  # of the numbers; older files say none


DESCRIBED = Document(_Described, DataError, REMEDY)


@dataclass(frozen=True)
class Reference:
    """Moments of all real images in a space, features (k,D) float32 of some of them or None,
    and where they come from.
    """

    statistics: Statistics
    features: Tensor | None
    described: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Identity of these numbers, for the protocol record."""
        s, digest = self.statistics, hashlib.sha256()
        digest.update(b"%d/" % s.n + s.mean.numpy().tobytes() + s.covariance.numpy().tobytes())
        if self.features is not None:
            digest.update(self.features.numpy().tobytes())
        return f"sha256:{digest.hexdigest()}"

    def save(self, url: str) -> None:
        """Write as an npz file."""
        buffer, s = io.BytesIO(), self.statistics
        arrays: dict[str, Any] = {"n": np.int64(s.n), "mean": s.mean.numpy(), "covariance": s.covariance.numpy()}
        arrays["described"] = np.array(json.dumps({**self.described, "hash": self.hash}))
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        np.savez(buffer, **arrays)
        storage.write(url, buffer.getvalue())


def load(url: str, extractor: Extractor, image_size: int) -> Reference:
    """What `Reference.save` wrote, or a file with mu and sigma as ADM and clean-fid publish them (see `imported`).
    Raises DataError.
    """
    try:
        content = storage.read(url)
    except FileNotFoundError as error:
        raise DataError(f"the reference statistics {url} are not there") from error
    arrays = arrays_of(content, url, DataError, REMEDY)
    try:
        if "described" not in arrays:
            return imported(url, arrays, extractor, image_size)
        return _own(url, arrays, extractor, image_size)
    except ValueError as error:
        if isinstance(error, CmdistError):
            raise
        raise DataError(f"{url} is no file of statistics, or a damaged one: {short(error)}; {REMEDY}") from error


def _own(url: str, arrays: Arrays, extractor: Extractor, image_size: int) -> Reference:
    """What `Reference.save` wrote. Raises DataError, and ValueError for numbers that are none."""
    described = DESCRIBED.read(str(array(arrays, "described", "U", ())), url)
    expected = describe(extractor) | {"image_size": image_size}
    for key, text in {"image_size": "images of size", "extractor": "the extractor", "resize": "the resizing"}.items():
        if described[key] != expected[key]:
            raise DataError(
                f"the reference {url} is of {text} {described[key]}, and this evaluation of {expected[key]}"
            )
    d = extractor.dimensions
    n = int(array(arrays, "n", "iu", ()))
    mean, covariance = _finite(arrays, "mean", (d,)), _finite(arrays, "covariance", (d, d))
    _check_covariance(covariance, "covariance")
    imported_from = str(described.get("source", ""))  # a file, which does not say of how many images it is
    least = 2 if not imported_from or re.fullmatch(r"[0-9a-f]{64}", imported_from) else 0
    if n < least or mean.dtype != torch.float64 or covariance.dtype != torch.float64:
        raise ValueError(f"its moments are of {n} images, in {mean.dtype}")
    features = _finite(arrays, "features", (None, d)) if "features" in arrays else None
    if features is not None and (features.dtype != torch.float32 or not len(features)):
        raise ValueError(f"its features are {list(features.shape)} numbers in {features.dtype}")
    values = Reference(Statistics(n, mean, covariance), features, described)
    if described.pop("hash", values.hash) != values.hash:
        raise ValueError("its numbers are not those that were written")
    return values


def _finite(arrays: Arrays, name: str, shape: tuple[int | None, ...]) -> Tensor:
    values = array(arrays, name, "f", shape)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite")
    return torch.from_numpy(values)


def _check_covariance(covariance: Tensor, name: str) -> None:
    """Raise ValueError for a matrix that is the covariance of nothing."""
    largest = float(covariance.abs().max())
    if float((covariance - covariance.T).abs().max()) > _TOLERANCE * largest:
        raise ValueError(f"{name} is not symmetric")
    symmetric = (covariance + covariance.T) / 2
    # a factor proves it in a third of the time of eigenvalues, of which the largest is no less than the diagonal's
    margin = _TOLERANCE / 2 * float(symmetric.diagonal().max())
    if margin > 0 and not torch.linalg.cholesky_ex(symmetric + margin * torch.eye(len(symmetric))).info:
        return
    values = torch.linalg.eigvalsh(symmetric)
    if largest == 0 or float(values[0]) < -_TOLERANCE * float(values[-1].clamp(min=0)):
        raise ValueError(f"{name} has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}, and none below 0 is needed")


def imported(url: str, arrays: Mapping[str, np.ndarray[Any, Any]], extractor: Extractor, image_size: int) -> Reference:
    """ADM's reference batches (mu, sigma, and in arr_0 images whose features we take) and clean-fid's statistics (mu,
    sigma).

    Such a file does not say how its images were resized: ADM's have the TensorFlow way, clean-fid's say it in their
    names. Raises DataError if the file contradicts the extractor or the image size.
    """
    name = url.rpartition("/")[2]
    if not {"mu", "sigma"} <= arrays.keys():
        raise DataError(f"{url} has no mu and sigma; it has {', '.join(arrays) or 'nothing'}")
    for key in ("mu", "sigma"):
        if arrays[key].dtype.kind != "f":
            raise ValueError(f"{key} holds {arrays[key].dtype}, and fractions are needed")
    mean, covariance = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
    if mean.shape != (extractor.dimensions,) or covariance.shape != (extractor.dimensions, extractor.dimensions):
        raise DataError(
            f"{url} is of {mean.numel()} features, and the extractor of {extractor.space} gives {extractor.dimensions}"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise DataError(f"{url} holds values that are not finite")
    _check_covariance(covariance, "sigma")
    of_adm = "mu_s" in arrays or "arr_0" in arrays
    is_clean, is_legacy = "_clean_" in name, of_adm or "_legacy_tensorflow_" in name
    if (extractor.space == "fid" and is_legacy) or (extractor.space == "fid_legacy" and is_clean):
        raise DataError(
            f"{url} was made with {'clean-fid' if is_clean else 'TensorFlow'}'s resizing, which is not that of "
            f"{extractor.space}"
        )
    images = arrays.get("arr_0")
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3)):
        raise ValueError(f"arr_0 holds {images.dtype} of shape {list(images.shape)}, and uint8 images NHWC are needed")
    if images is not None and (not len(images) or images.shape[1] != images.shape[2]):
        raise ValueError(f"arr_0 has the shape {list(images.shape)}, and square images are needed")
    size = str(images.shape[1]) if images is not None else name.removesuffix(".npz").rpartition("_")[2]
    if size.isdigit() and int(size) != image_size:
        raise DataError(f"{url} is of images of size {size}, and this evaluation of {image_size}")
    features = None if images is None else extractor.features(torch.from_numpy(images[:KEPT]).permute(0, 3, 1, 2))
    # how many images its moments are of is not in the file
    return Reference(
        Statistics(0, mean, covariance), features, describe(extractor) | {"image_size": image_size, "source": name}
    )


def describe(extractor: Extractor) -> dict[str, Any]:
    """What a reference must share with an evaluation."""
    return {"space": extractor.space, "extractor": extractor.hash, "resize": extractor.resize}


def make(
    data: ShardedImages,
    extractor: Extractor,
    folder: str,
    world: World,
    progress: Callable[[int], object] = lambda images: None,
) -> Reference | None:
    """From all images of a data set, on all ranks, which must all call; on rank 0 the result. Raises DataError.

    It goes on after a kill from the parts below `folder`, which the caller removes when the result is safe. The data
    set is cut into at most 64 units, whatever the number of ranks, and their moments are merged in order: the same bits
    on any number of ranks.
    """
    step = -(-len(data) // (UNITS * PIECE)) * PIECE
    parts = Parts(folder, -(-len(data) // step))

    def unit(part: int) -> Arrays:
        moments, kept = Moments(extractor.dimensions, world.device), []
        last = min((part + 1) * step, len(data))
        for first in range(part * step, last, PIECE):
            features = extractor.features(data.images(range(first, min(first + PIECE, last))))
            moments.add(features)
            kept.append(features[: max(0, KEPT - first)])
            progress(len(features))
        return {
            "n": np.array(moments.n),
            "mean": moments.mean.cpu().numpy(),
            "scatter": moments.scatter.cpu().numpy(),
            "features": torch.cat(kept).numpy(),
        }

    parts.complete(unit, world, lambda part: progress(min(step, len(data) - part * step)))
    if not world.first:
        return None
    moments, kept = Moments(extractor.dimensions), []
    for arrays in parts.read():
        moments.merge(Moments.of(int(arrays["n"]), *(torch.from_numpy(arrays[key]) for key in ("mean", "scatter"))))
        kept.append(torch.from_numpy(arrays["features"]))
    described = describe(extractor) | {"image_size": data.index["image_size"], "source": data.index_hash}
    return Reference(moments.statistics(), torch.cat(kept), described)
