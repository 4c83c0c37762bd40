"""What an objective is: the numbers of a step, all randomness of a micro-batch, a deterministic loss of each image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cmdist.core.noise import Denoise
from cmdist.core.preconditioning import Model

_DROPOUT = 0x3B9D_51E7_A6C4_082F  # any fixed number: masks must not be made of the same random numbers as the noise

At = Mapping[str, float]  # the numbers of a step by name: what is logged, e.g. n_timesteps and mu


@dataclass(frozen=True)
class Networks:
    """What an objective may call. Only `student` and `extra` are ever called with gradient."""

    student: Model
    bare_student: Model  # the same weights without the engine around them, for what must not go through it
    target: Model | None = None  # theta^-; None: the student itself without gradient
    teacher: Denoise | None = None  # phi, in evaluation mode; None: consistency training
    frozen: Denoise | None = None  # a helper that never changes: a boundary, a guide
    extra: Callable[..., Tensor] | None = None  # what is trained beside the student, e.g. a weighting head


@dataclass(frozen=True)
class Draw:
    """All that a loss depends on beside B images, their labels and weights; an objective adds its own."""

    sigma: Tensor  # (B,)
    noise: Tensor  # (B, C, H, W), unit normal
    dropout_seed: int


@dataclass(frozen=True)
class Losses:
    """What is minimised, and what is only told: each (B,), of any sign."""

    minimised: Tensor
    told: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Acts:
    """What happens before a step, once, and is repeated by a run that comes back at that very step."""

    teacher_is_student: bool = False  # the teacher takes the student's weights
    zero_moments: bool = False  # the optimizer starts afresh


class Objective(Protocol):
    """What is minimised."""

    def at(self, step: int) -> At:
        """The numbers of a step; `mu`, if it is among them, is the decay of the target in that step, `lr_factor` what
        the learning rate is multiplied by.
        """

    def acts(self, step: int) -> Acts:
        """What happens before a step."""

    def draw(self, shape: Sequence[int], at: At, generator: torch.Generator) -> Draw:
        """All randomness of a micro-batch of images (B, C, H, W), on the generator's device."""

    def loss(self, networks: Networks, images: Tensor, labels: Tensor | None, draw: Draw) -> Losses:
        """Losses of images (B, C, H, W) in [-1, 1]; the same for the same arguments."""


def draw_noise(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, int]:
    """Unit normal noise of `shape`, and a seed for dropout masks.

    The seed comes from the generator's own: a draw of it would be waited for.
    """
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return noise, generator.initial_seed() ^ _DROPOUT


@contextmanager
def same_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, dropout masks on `device` follow from `seed`; the global state is as before afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # torch.manual_seed would seed every kind of device, and note the stack where CUDA is not used
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
