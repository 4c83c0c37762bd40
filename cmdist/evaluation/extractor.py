"""A space in which images are compared: what makes features of images there."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist.errors import DataError

Compute = Callable[[Tensor, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Extractor:
    """`space` is one of METRICS. `compute` makes features (B,dimensions) and, if told so, class probabilities
    (B,classes) of uint8 images (B,C,H,W), `batch` of them at a time, on which the last bits depend.
    """

    space: str
    hash: str
    resize: str
    dimensions: int
    compute: Compute
    batch: int = 64

    def features(self, images: Tensor) -> Tensor:
        """float32 (B,dimensions) on the CPU of uint8 images (B,C,H,W). Raises DataError if a value is not finite."""
        return self.compute(images, False)[0]

    def features_and_probabilities(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Those, and the class probabilities (B,classes)."""
        return self.compute(images, True)


def inside(
    space: str,
    prepare: Callable[[Tensor], Tensor],
    network: Callable[[Tensor], Tensor],
    probabilities: Callable[[Tensor], Tensor] | None = None,
    batch: int = 64,
) -> Compute:
    """The `compute` of a network in this process, which takes what `prepare` makes of uint8 images; without
    `probabilities` it gives none, (B,0).
    """

    def batches(images: Tensor, wanted: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The next one is prepared while the network works."""
        parts = images.split(batch)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(prepare, parts[0])
            for following in (*parts[1:], None):
                prepared = coming.result()
                if following is not None:
                    coming = ahead.submit(prepare, following)
                features = network(prepared).float().cpu()
                if not bool(torch.isfinite(features).all()):
                    raise DataError(f"the extractor of {space} gave features that are not finite (NaN or infinite)")
                classes = probabilities(prepared).float().cpu() if wanted and probabilities else features[:, :0]
                yield features, classes

    @torch.inference_mode()
    def compute(images: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
        features, classes = zip(*batches(images, wanted), strict=True)
        return torch.cat(features), torch.cat(classes)

    return compute
