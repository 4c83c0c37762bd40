"""A row of the table of objectives: what it says of a kind, and what its makers are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cmdist.core import distances, preconditioning
from cmdist.core.objectives.base import Objective
from cmdist.core.preconditioning import Scalings
from cmdist.core.sampling import Makes
from cmdist.sections import Noise, Section


@dataclass(frozen=True)
class Parts:
    """What an objective is made of beside its own keys."""

    noise: Noise
    shape: tuple[int, int, int]  # of an image
    steps: int  # of the run
    distance: Callable[[Section], distances.Distance]  # by the keys of a distance


def edm(keys: Section, n: Noise) -> Callable[[Tensor], Scalings]:
    """Those of a denoiser."""
    return preconditioning.edm_scalings(n.sigma_data, told(n))


def bounded(keys: Section, n: Noise) -> Callable[[Tensor], Scalings]:
    """Those of a function that is the identity at sigma_min."""
    return preconditioning.consistency_scalings(n.sigma_data, n.sigma_min, told(n))


def told(n: Noise) -> Callable[[Tensor], Tensor]:
    """c_noise, what a network is told of sigma."""
    return preconditioning.angle(n.sigma_data) if n.c_noise == "angle" else preconditioning.log_level


@dataclass(frozen=True)
class Kind:
    """A row of the table. `section` has the keys, `make` takes them and `Parts`."""

    section: type[Section]
    make: Callable[[Any, Parts], Objective]
    scalings: Callable[[Any, Noise], Callable[[Tensor], Scalings]]  # by its keys and the noise levels
    makes: Makes  # what a trained network is, and so how it is sampled
    steps: Callable[[Any, int], int] | None = None  # of what makes steps: how many, after a number of training steps
    check: Callable[[Any], str | None] = lambda config: None  # why a configuration cannot be, in a sentence
    target: Callable[[Any], bool] = lambda keys: False  # whether it needs a target network
    teacher_is_student: bool = False  # whether the teacher takes the student's weights now and then
    frozen: str | None = None  # the key that names the run of a helper that never changes
    frozen_makes: Makes | None = None  # what that run must have made, if not anything
    frozen_dropout: bool = False  # whether the helper's dropout is that of the student
    extra: Callable[[Any], nn.Module] | None = None  # what is trained beside the network
    second: bool = False  # whether it gives the network a second noise level
    through: Callable[[Any], bool] = lambda keys: False  # whether its gradient goes through a derivative of the student

    @property
    def teacher(self) -> bool:
        """Whether it follows a teacher."""
        return "teacher" in self.section.model_fields
