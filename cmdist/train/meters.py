"""What the loop measures: where the time goes, and the loss by noise level."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor


@dataclass
class Clock:
    """Seconds of a run over all its attempts; goodput is `useful` over the wall time since the run's first start.

    Device-hours are the time in attempts times their devices, without the time between them and what was lost at a
    kill. `restart_loss` is the time from a checkpoint to the first step after it was resumed: work done twice, and
    waiting.
    """

    started_at: float = field(default_factory=time.time)
    useful: float = 0.0
    data_wait: float = 0.0
    checkpoint_stall: float = 0.0
    restart_loss: float = 0.0
    devices: int = 1
    device_seconds: float = 0.0  # of attempts before this one

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()

    @contextmanager
    def count(self, name: str) -> Iterator[None]:
        """Add the time inside the block to `name`."""
        begin = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - begin)

    def state(self) -> dict[str, float]:
        """For the checkpoint."""
        return asdict(self) | {"saved_at": time.time(), "device_seconds": self._device_seconds()}

    @classmethod
    def resumed(cls, state: dict[str, float], devices: int) -> "Clock":
        """The clock of a checkpoint, set going again on another or the same number of devices."""
        clock = cls(
            **{name: value for name, value in state.items() if name not in ("saved_at", "devices")}, devices=devices
        )
        clock.restart_loss += max(time.time() - state["saved_at"], 0.0)
        return clock

    def metrics(self) -> dict[str, float]:
        """Fractions of the wall time so far, that time, and device-hours."""
        wall = max(time.time() - self.started_at, 1e-9)
        return {
            "goodput": self.useful / wall,
            "data_wait": self.data_wait / wall,
            "checkpoint_stall": self.checkpoint_stall / wall,
            "restart_loss": self.restart_loss / wall,
            "wall_seconds": wall,
            "device_hours": self._device_seconds() / 3600,
        }

    def _device_seconds(self) -> float:
        return self.device_seconds + self.devices * (time.perf_counter() - self._begin)


class FirstNotFinite:
    """Where a loss was first not finite: kept on the device, so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._sigma = torch.full((), torch.nan, device=device)  # NaN: nowhere yet

    def see(self, sigma: Tensor, losses: Tensor, counts: Tensor) -> None:
        """The losses (B,) of a micro-batch at noise levels (B,); `counts` is false once the weights are not finite."""
        wrong = ~losses.detach().isfinite() & counts
        here = torch.where(wrong, sigma.to(self._sigma.dtype), -torch.inf).amax()
        self._sigma = torch.where(self._sigma.isnan() & wrong.any(), here, self._sigma)

    def sigma(self) -> float | None:
        """The noise level; of several in that micro-batch the highest. Waits for the device."""
        sigma = float(self._sigma)
        return None if sigma != sigma else sigma


class SigmaBuckets:
    """Means by noise level of what a loss tells: one bucket for each factor of about four between the sigmas."""

    def __init__(self, sigma_min: float, sigma_max: float, device: torch.device, count: int = 8) -> None:
        self._edges = torch.logspace(
            torch.tensor(sigma_min).log10().item(), torch.tensor(sigma_max).log10().item(), count + 1
        )
        self._inner = self._edges[1:-1].to(device)
        self._sums: dict[str, Tensor] = {}  # (2, count): sums and counts

    def add(self, name: str, sigma: Tensor, values: Tensor) -> None:
        """Values (B,) of a quantity at noise levels (B,)."""
        if name not in self._sums:
            self._sums[name] = torch.zeros(2, len(self._edges) - 1, device=values.device, dtype=torch.float64)
        bucket = torch.bucketize(sigma, self._inner)
        self._sums[name][0].index_add_(0, bucket, values.detach().double())
        self._sums[name][1].index_add_(0, bucket, torch.ones_like(values, dtype=torch.float64))

    def take(self) -> dict[str, list[list[float]]]:
        """[sums, counts] of the buckets since the last call, by quantity."""
        taken = {name: sums.tolist() for name, sums in self._sums.items()}
        for sums in self._sums.values():
            sums.zero_()
        return taken

    def metrics(self, taken: Sequence[Mapping[str, list[list[float]]]]) -> dict[str, float]:
        """Means over the ranks' `take()`s: NAME_sigma_LOW_HIGH of each bucket that saw something.

        Of what is told beside the loss, also NAME, the mean over all noise levels.
        """
        means: dict[str, float] = {}
        for name in taken[0]:
            sums, counts = torch.tensor([rank[name] for rank in taken], dtype=torch.float64).sum(0)
            if name != "loss" and counts.sum() > 0:
                means[name] = float(sums.sum() / counts.sum())
            for low, high, total, count in zip(self._edges, self._edges[1:], sums, counts, strict=False):
                if count > 0:
                    means[f"{name}_sigma_{low:.3g}_{high:.3g}"] = float(total / count)
        return means
