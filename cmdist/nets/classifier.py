"""A small convolutional classifier: the feature extractor for data sets whose images are too small for Inception."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmdist import seeding
from cmdist.errors import DataError
from cmdist.system.texts import counted

FEATURES = 64


class Classifier(nn.Module):
    """uint8 images (B, channels, H, W), H and W at least 4 -> logits (B, classes) fp32;
    `features` gives the 64 numbers below them.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 64, FEATURES),
        )
        self.head = nn.Linear(FEATURES, classes)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Classifier":
        """The classifier whose `state_dict()` this is, in eval mode. Raises DataError if it is none."""
        try:
            classifier = cls(channels=state["body.0.weight"].shape[1], classes=state["head.weight"].shape[0])
            classifier.load_state_dict(state)
        except (KeyError, IndexError, RuntimeError) as error:
            raise DataError(
                f"these weights are not those of a cmdist classifier: {str(error).splitlines()[0]}"
            ) from error
        return classifier.eval()

    def features(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) uint8 -> (B, 64) fp32, taken before the last ReLU: no dimension is dead, and each is
        nearer to a Gaussian.
        """
        if images.dtype != torch.uint8:
            raise DataError(f"the classifier takes uint8 images, not {images.dtype}")
        return cast(Tensor, self.body(images.float() / 127.5 - 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) uint8 -> (B, classes) fp32."""
        return cast(Tensor, self.head(F.relu(self.features(images))))


class Layers(nn.Module):
    """A classifier as LPIPS sees through VGG (Zhang et al. 2018, eq. 1, all weights 1): images (B, channels, H, W) in
    [-1, 1] twice -> (B,), the squared differences of each convolution's activations, of length 1 over the channels at
    each place, as a mean over the places.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.body = classifier.body.requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) in [-1, 1] -> each (B, C, h, w), whose squared differences sum up to the distance."""
        layers = []
        for part in self.body:
            x = part(x)
            if isinstance(part, nn.ReLU):
                length = (x.square().sum(1, keepdim=True) + 1e-10).sqrt()
                layers.append(x / length / (x.shape[2] * x.shape[3]) ** 0.5)
            if isinstance(part, nn.Flatten):
                break
        return layers

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, channels, H, W) twice -> (B,)."""
        pairs = zip(self.features(x), self.features(y), strict=True)
        return torch.stack([(a - b).square().flatten(1).sum(1) for a, b in pairs]).sum(0)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    seed: int,
    classes: int | None = None,
    epochs: int = 20,
    batch: int = 64,
    held_out: float = 0.2,
) -> tuple[Classifier, float]:
    """Train on uint8 images (n, C, H, W) and labels (n,) int64; gives the classifier (eval mode) and its accuracy on
    images it did not see.

    A random `held_out` part of the images only measures: the network that is measured is the one that is given back.
    All randomness comes from `seed`; the global generator is left as it was. Raises DataError for data that cannot be
    split or do not fit together.
    """
    n = len(images)
    if n != len(labels) or not 0 < int(n * held_out) < n:
        raise DataError(
            f"a classifier needs as many images as labels and some to hold out: {counted(n, 'image')}, "
            f"{counted(len(labels), 'label')}"
        )
    order = torch.randperm(n, generator=seeding.generator("cpu", seed, "classifier", "split"))
    held, seen = order[: int(n * held_out)], order[int(n * held_out) :]
    with torch.random.fork_rng(devices=[]):  # torch initializes layers from the global generator
        torch.manual_seed(seeding.key(seed, "classifier", "weights"))
        classifier = Classifier(images.shape[1], classes or int(labels.max()) + 1)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    parts = -(-len(seen) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * parts))
    for epoch in range(epochs):
        shuffle = torch.randperm(len(seen), generator=seeding.generator("cpu", seed, "classifier", epoch))
        for part in seen[shuffle].chunk(parts):
            optimizer.zero_grad()
            loss = F.cross_entropy(classifier(images[part]), labels[part])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    classifier.eval()
    with torch.no_grad():
        accuracy = float((classifier(images[held]).argmax(1) == labels[held]).float().mean())
    return classifier, accuracy
