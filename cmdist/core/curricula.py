"""N(k) and mu(k)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isqrt, log
from typing import Literal


@dataclass(frozen=True)
class Point:
    """Where the curriculum stands."""

    n_timesteps: int
    mu: float


Curriculum = Callable[[int], Point]


@dataclass(frozen=True)
class Constant:
    """The same N and mu at every step."""

    n_timesteps: int
    mu: float = 0.0

    def __call__(self, step: int) -> Point:
        """Independent of the step."""
        return Point(self.n_timesteps, self.mu)


@dataclass(frozen=True)
class Paper:
    """The paper's schedule."""

    s0: int
    s1: int
    mu0: float
    total_steps: int
    mu_form: Literal["paper", "code"] = "paper"

    def __call__(self, step: int) -> Point:
        """Capped."""
        k = min(step, self.total_steps)
        squared = -(-(k * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2 * self.total_steps) // self.total_steps)
        n = isqrt(squared - 1) + 1
        return Point(n, exp(self.s0 * log(self.mu0) / (n if self.mu_form == "paper" else n - 1)))


@dataclass(frozen=True)
class Doubling:
    """Improved CT."""

    s0: int
    s1: int
    total_steps: int

    def __call__(self, step: int) -> Point:
        """Capped."""
        stage = self.total_steps // ((self.s1 // self.s0).bit_length())
        return Point(min(self.s0 * 2 ** (step // max(stage, 1)), self.s1) + 1, 0.0)
