"""An objective and a network of their own, each a row of its table: what the next ones may look like.

The objective has a second noise level, tells a quantity of any sign, asks a helper that never changes, trains a head
beside the network, and lets its teacher take the student's weights at a boundary.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from cmdist.core.noise import add_noise, lognormal_sigma
from cmdist.core.objectives.base import Acts, At, Draw, Losses, Networks, draw_noise, same_dropout
from cmdist.core.preconditioning import consistency_scalings
from cmdist.kinds.kind import Kind, Parts
from cmdist.kinds.networks import NETWORKS, Images, Network
from cmdist.kinds.objectives import OBJECTIVES
from cmdist.sections import Positive, Section, content, identity

BOUNDARY = 3


class Head(nn.Module):
    """A weight for each image, by its noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, sigma: Tensor) -> Tensor:
        return self.slope * sigma.log()


class ToyNet(nn.Module):
    """A layer or two, with a second noise level for those who give it."""

    def __init__(self, images: Images, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(images.channels, width, 3, padding=1)
        self.times, self.labels = nn.Linear(2, width), nn.Embedding(max(images.classes, 1), width)
        self.outer = nn.Conv2d(width, images.channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        times = torch.stack([c_noise, torch.zeros_like(c_noise) if second is None else second], 1)
        told = self.times(times) if labels is None else self.times(times) + self.labels(labels)
        return self.outer((self.inner(x) + told[:, :, None, None]).tanh())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TwoLevels(Draw):
    sigma_next: Tensor


@dataclass(frozen=True)
class Toy:
    def at(self, step: int) -> At:
        return {"stage": float(step >= BOUNDARY)}

    def acts(self, step: int) -> Acts:
        return Acts(teacher_is_student=True, zero_moments=True) if step == BOUNDARY else Acts()

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> TwoLevels:
        sigma = lognormal_sigma(shape[0], -1.0 - at["stage"], 1.0, generator)
        return TwoLevels(sigma, *draw_noise(shape, generator), sigma_next=sigma / 2)

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        assert isinstance(draw, TwoLevels) and networks.teacher and networks.frozen and networks.extra
        x = add_noise(images, draw.sigma, draw.noise)
        with torch.no_grad():
            goal = (networks.teacher(x, draw.sigma, labels) + networks.frozen(x, draw.sigma, labels)) / 2
        with same_dropout(draw.dropout_seed, images.device):
            found = networks.student(x, draw.sigma, labels, draw.sigma_next)
        error, weight = (found - goal).square().flatten(1).mean(1), networks.extra(draw.sigma)
        return Losses(weight.exp() * error - weight, {"head": weight, "error": error})


class ToyKeys(Section):
    """A made-up objective."""

    kind: Annotated[Literal["toy"], identity("what is learned")]
    teacher: Annotated[str, content("a run")]
    helper: Annotated[str, content("another run")]


class ToyNetKeys(Section):
    """A made-up network."""

    kind: Annotated[Literal["toy"], identity("which network")]
    width: Annotated[Positive, identity("channels")] = 8


def _make(keys: ToyKeys, parts: Parts) -> Toy:
    return Toy()


ROW = Kind(
    ToyKeys,
    _make,
    lambda keys, n: consistency_scalings(n.sigma_data, n.sigma_min),
    "consistency",
    teacher_is_student=True,
    frozen="helper",
    extra=lambda keys: Head(),
)
NETWORK_ROW = Network(ToyNetKeys, lambda keys, images, precision: ToyNet(images, keys.width), lambda keys, images: None)


def install(tables: Any = None) -> None:
    """Add the two rows, by pytest's monkeypatch where there is one."""
    for table, row in ((OBJECTIVES, ROW), (NETWORKS, NETWORK_ROW)):
        if tables is None:
            table["toy"] = row
        else:
            tables.setitem(table, "toy", row)


def train(arguments: list[str]) -> None:
    """pipelines/train.py with the two rows."""
    from ranks import pipeline

    install()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pipeline("train").main(arguments)
