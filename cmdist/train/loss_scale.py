"""fp16's dynamic loss scale (Micikevicius et al. 2018, section 3.2):
small gradients are lifted into the range of half precision.
"""

from dataclasses import asdict, dataclass

GOOD_STEPS = 1000  # without an overflow before the scale is doubled


@dataclass
class LossScale:
    """A power of two where it starts as one, so that scaling changes no digit;
    `good_steps` counts from the last change.
    """

    value: float = 1.0
    dynamic: bool = False
    good_steps: int = 0

    def update(self, taken: bool) -> None:
        """After each attempt at an optimizer step: halve for an overflow, double after GOOD_STEPS without one."""
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if taken else 0
        if not taken:
            self.value /= 2
        elif self.good_steps == GOOD_STEPS:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """For the checkpoint."""
        return asdict(self)
