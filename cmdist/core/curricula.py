"""N(k) and mu(k): how many noise levels there are at step k, and how slowly the target follows the student."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isqrt, log, log2
from typing import Literal


@dataclass(frozen=True)
class Point:
    """Where the curriculum stands: N noise levels, and the target's decay mu in [0, 1)."""

    n_timesteps: int
    mu: float


Curriculum = Callable[[int], Point]  # step k, from 0 -> Point


@dataclass(frozen=True)
class Constant:
    """The same N and mu at every step (consistency distillation in the paper)."""

    n_timesteps: int
    mu: float = 0.0

    def __post_init__(self) -> None:
        if self.n_timesteps < 2 or not 0 <= self.mu < 1:
            raise ValueError(
                f"a constant curriculum needs n_timesteps >= 2 and 0 <= mu < 1, not {self.n_timesteps} and {self.mu}"
            )

    def __call__(self, step: int) -> Point:
        """The same at every step."""
        return Point(self.n_timesteps, self.mu)


@dataclass(frozen=True)
class Paper:
    """The paper's schedule for consistency training (appendix C): N from s0 to s1 + 1, mu from mu0 towards 1.

    N(k) = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1, in whole numbers, so no rounding moves a jump.
    mu(k) = exp(s0 ln mu0 / N(k)) for `mu_form` "paper"; OpenAI's code divides by N(k) - 1 instead: "code".
    After K = total_steps both stay as they are; the public code lets N grow on for ever.
    """

    s0: int
    s1: int
    mu0: float
    total_steps: int
    mu_form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        if not 2 <= self.s0 <= self.s1 + 1 or not 0 < self.mu0 < 1 or self.total_steps < 1:
            raise ValueError(
                f"the paper's curriculum needs 2 <= s0 <= s1 + 1, 0 < mu0 < 1 and total_steps >= 1: {self}"
            )

    def __call__(self, step: int) -> Point:
        """N and mu of step k; k > K counts as K."""
        k, total = min(step, self.total_steps), self.total_steps
        squared = -(
            -(k * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2 * total) // total
        )  # rounded up, which moves no ceil(sqrt)
        n = isqrt(squared - 1) + 1  # ceil(sqrt(squared))
        return Point(n, exp(self.s0 * log(self.mu0) / (n if self.mu_form == "paper" else n - 1)))


@dataclass(frozen=True)
class Doubling:
    """Improved CT's schedule (Song & Dhariwal 2023, section 3.4): N - 1 doubles from s0 up to s1, and mu = 0.

    N(k) = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2(floor(s1/s0)) + 1)).
    """

    s0: int
    s1: int
    total_steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.s0 <= self.s1 or self.total_steps < 1:
            raise ValueError(f"the doubling curriculum needs 1 <= s0 <= s1 and total_steps >= 1: {self}")

    def __call__(self, step: int) -> Point:
        """N of step k; mu is 0."""
        stage = max(1, int(self.total_steps / (log2(self.s1 // self.s0) + 1)))
        doublings = min(step // stage, self.s1.bit_length())  # more would not matter, and 2^k must not explode
        return Point(min(self.s0 * 2**doublings, self.s1) + 1, 0.0)
