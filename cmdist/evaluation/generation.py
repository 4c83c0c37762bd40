"""Image i from seed i, for any sampler.

Bits. The result of a network changes in the last bits with the shape of its batch, so a network always runs on groups
of one size, cut at multiples of that size on the line of seeds. Seed s therefore always stands at the same place of the
same group, and its image depends on s alone: not on the number of ranks, of images, or on the batch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cmdist import seeding
from cmdist.core import sampling, solvers
from cmdist.core.editing import slerp
from cmdist.core.noise import Denoise, Jump, karras_sigmas, onto
from cmdist.errors import ConfigError, DataError

Sample = Callable[
    [Tensor, Tensor | None], Tensor
]  # noises (S,B,C,H,W), labels (B,) or None -> images (B,C,H,W) in [-1,1]

MOST = 10_000_000  # images of an evaluation
ROUNDING = "floor(127.5 x + 128), clipped to 0..255"  # EDM's; the released consistency code differs by half a level


def group_size(height: int, width: int) -> int:
    """Images of a group, a function of the image size only: 256 up to 32x32 pixels, 64 at 64x64, 4 at 256x256."""
    return max(1, min(256, 64**3 // (height * width)))


def to_uint8(images: Tensor) -> Tensor:
    """[-1,1] to 0..255 by ROUNDING. Raises DataError if a value is not finite."""
    if not bool(torch.isfinite(images).all()):
        raise DataError(
            "the model made images with values that are not finite (NaN or infinite); this "
            "checkpoint cannot be evaluated"
        )
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def noises(seeds: Iterable[int], draws: int, shape: tuple[int, int, int]) -> Tensor:
    """Unit normal noise (draws,B,C,H,W) on the CPU; a seed's first draw is the same for any number of draws."""
    columns = []
    for seed in seeds:
        generator = seeding.generator("cpu", seed, "image")
        columns.append(torch.stack([torch.randn(shape, generator=generator) for _ in range(draws)]))
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class Task:
    """What is generated: images (C,H,W) of the given consecutive seeds, of class `seed % classes` (0: unlabelled), or
    of those classes alone that are `present`, in turn.
    """

    seeds: range
    shape: tuple[int, int, int]
    classes: int
    draws: int  # noises that the sampler takes
    present: Sequence[int] = ()

    def label(self, seed: int) -> int:
        """The class of a seed's image."""
        return self.present[seed % len(self.present)] if self.present else seed % self.classes

    @property
    def groups(self) -> range:
        """The numbers of the groups that the seeds are in."""
        size = group_size(*self.shape[1:])
        return range(self.seeds.start // size, (self.seeds.stop - 1) // size + 1)

    def part(self, group: int) -> slice:
        """The places of a group that belong to the task; the others are made and dropped."""
        size = group_size(*self.shape[1:])
        return slice(max(0, self.seeds.start - group * size), min(size, self.seeds.stop - group * size))

    def blocks(self, images: int = 128) -> list[range]:
        """The groups in stretches of at least so many images, cut at their multiples on the line of seeds."""
        stretch = -(-images // group_size(*self.shape[1:]))
        numbers = range(self.groups.start // stretch, (self.groups.stop - 1) // stretch + 1)
        return [range(max(self.groups.start, i * stretch), min(self.groups.stop, (i + 1) * stretch)) for i in numbers]

    def before(self, group: int) -> int:
        """How many of the task's images come before a group."""
        return max(0, group * group_size(*self.shape[1:]) - self.seeds.start)


@torch.inference_mode()
def generate(
    task: Task, sample: Sample, device: torch.device, batch: int = 1024, groups: range | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (group number, whole group of images uint8 (G,C,H,W) on `device`) for the given groups of the task, or all.

    The noise of `batch` images is held at a time: half of it with the device, half drawn ahead by a thread (memory, not
    images, changes with it).
    """
    size = group_size(*task.shape[1:])
    numbers, together = task.groups if groups is None else groups, max(1, batch // (2 * size))
    chunks = [numbers[first : first + together] for first in range(0, len(numbers), together)]
    seeds = [[s for group in chunk for s in range(group * size, (group + 1) * size)] for chunk in chunks]
    with ThreadPoolExecutor(1, "noise") as pool:

        def draw(place: int) -> Future[Tensor] | None:
            return pool.submit(noises, seeds[place], task.draws, task.shape) if place < len(chunks) else None

        ahead = draw(0)
        for number, chunk in enumerate(chunks):
            assert ahead is not None
            noise = onto(ahead.result(), device)
            ahead = draw(number + 1)
            classes = [task.label(seed) for seed in seeds[number]] if task.classes else None
            labels = None if classes is None else torch.tensor(classes, device=device)
            for place, group in enumerate(chunk):
                part = slice(place * size, (place + 1) * size)
                yield group, to_uint8(sample(noise[:, part].contiguous(), None if labels is None else labels[part]))


def images(task: Task, sample: Sample, device: torch.device) -> Tensor:
    """All of a task's images uint8 (n,C,H,W) on the CPU."""
    return torch.cat([group[task.part(number)].cpu() for number, group in generate(task, sample, device)])


@dataclass(frozen=True)
class Row:
    """Images of these seeds, or POINTS of them on the way from the noise of one seed to that of another."""

    seeds: Sequence[int]
    between: Sequence[int] | None = None

    POINTS = 10

    def __len__(self) -> int:
        return self.POINTS if self.between else len(self.seeds)

    def images(
        self, sampler: "Sampler", shape: tuple[int, int, int], label: int | None, classes: int, device: torch.device
    ) -> Tensor:
        """uint8 (n,C,H,W) on the CPU, of class `label` (None: seed % classes, of the first seed on the way)."""
        if self.between:
            ends = noises(self.between, sampler.draws, shape)
            weights = torch.linspace(0, 1, self.POINTS)
            noise = torch.stack([slerp(first, last, weights) for first, last in ends])
            numbers = [self.between[0]] * self.POINTS
        else:
            noise, numbers = noises(self.seeds, sampler.draws, shape), list(self.seeds)
        chosen = [seed % classes if label is None else label for seed in numbers] if classes else None
        labels = None if chosen is None else torch.tensor(chosen, device=device)
        with torch.inference_mode():
            return to_uint8(sampler.sample(noise.to(device), labels)).cpu()


def labels_of(labels: Sequence[int] | None, classes: int) -> Sequence[int | None]:
    """The classes of rows; None is a row in which each seed has its own. Raises ConfigError."""
    if labels and not classes:
        raise ConfigError("--labels was given, and this model has no classes")
    if wrong := [label for label in labels or () if not 0 <= label < classes]:
        raise ConfigError(f"--labels {wrong[0]}: 0 ... {classes - 1} are allowed")
    return labels or [None]


@dataclass(frozen=True)
class Sampler:
    """A way to make images: `draws` noises each, and what the protocol record says of it;
    metrics have its name in theirs.
    """

    name: str
    title: str
    draws: int
    sample: Sample
    described: dict[str, object]

    def searched_on(self, metric: str) -> "Sampler":
        """The same, with times that were chosen by this metric: its figures are better than those of others for it."""
        return replace(self, described=self.described | {"times searched on": metric}) if self.draws > 1 else self


def one_step(denoise: Denoise, sigma_max: float) -> Sampler:
    """One evaluation of a consistency model, from sigma_max."""

    def sample(noises: Tensor, labels: Tensor | None) -> Tensor:
        return sampling.one_step(denoise, noises[0], sigma_max, labels)

    return Sampler("1step", "one step", 1, sample, {"sampler": "one step", "times": [sigma_max]})


def multistep(denoise: Denoise, times: Sequence[float], sigma_min: float) -> Sampler:
    """The paper's Algorithm 1 at the noise levels `times`, descending from sigma_max."""

    def sample(noises: Tensor, labels: Tensor | None) -> Tensor:
        return sampling.multistep(denoise, noises, torch.tensor(times), sigma_min, labels)

    return Sampler(
        *_named(len(times)),
        len(times),
        sample,
        {"sampler": "multistep", "times": list(times)},
    )


def jumps(jump: Jump, sigmas: Sequence[float]) -> Sampler:
    """From each of the noise levels `sigmas` to the next, descending from sigma_max."""

    def sample(noises: Tensor, labels: Tensor | None) -> Tensor:
        return sampling.jumps(jump, noises[0], torch.tensor(sigmas), labels)

    return Sampler(*_named(len(sigmas) - 1), 1, sample, {"sampler": "jumps", "times": list(sigmas)})


def euler_steps(denoise: Denoise, n: int, sigma_min: float, sigma_max: float, rho: float) -> Sampler:
    """n Euler steps of the grid that a student of progressive distillation was trained for."""
    sigmas = karras_sigmas(n + 1, sigma_min, sigma_max, rho)

    def sample(noises: Tensor, labels: Tensor | None) -> Tensor:
        return sampling.jumps(partial(solvers.euler_step, denoise), noises[0], sigmas, labels)

    described = {"sampler": "euler", "steps": n, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    return Sampler(*_named(n), 1, sample, described)


def _named(steps: int) -> tuple[str, str]:
    """The name and title of a sampler with a number of steps."""
    return f"{steps}step", {1: "one step", 2: "two steps"}.get(steps, f"{steps} steps")


def ode(denoise: Denoise, steps: int, sigma_min: float, sigma_max: float, rho: float) -> Sampler:
    """Heun's method on the Karras grid of a denoising model, with a last Euler step to 0: 2 steps - 1 evaluations."""
    sigmas = torch.cat([karras_sigmas(steps, sigma_min, sigma_max, rho), torch.zeros(1)])

    def sample(noises: Tensor, labels: Tensor | None) -> Tensor:
        return sampling.ode(denoise, noises[0], sigmas, solvers.heun_step, labels)

    return Sampler(
        "ode",
        f"ODE, {2 * steps - 1} evaluations",
        1,
        sample,
        {"sampler": "heun", "steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
    )


def samplers(
    denoise: Callable[..., Tensor],
    steps: Sequence[str],
    times: Sequence[float],
    *,
    makes: sampling.Makes,
    ode_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    n_steps: int | None = None,
) -> list[Sampler]:
    """The samplers that `steps` names: heun for a denoiser, else numbers of steps.

    `times` are the noise levels of several steps; `n_steps` is the number that a student makes who makes no other.
    Raises ConfigError.
    """
    denoising = makes == "denoiser"
    if times[0] != sigma_max or any(a <= b for a, b in itertools.pairwise(times)) or times[-1] <= sigma_min:
        raise ConfigError(
            f"the times {list(times)} must fall from sigma_max ({sigma_max}) and stay above sigma_min ({sigma_min})"
        )
    result = []
    for name in steps:
        if name != "heun" and not (name.isdigit() and int(name) > 0):
            raise ConfigError(f"--steps {name}: a number of steps or 'heun' is allowed")
        if (name == "heun") != denoising:
            kind = (
                "a denoising run is sampled with heun"
                if denoising
                else "heun is for denoising runs, a consistency model takes a number"
            )
            raise ConfigError(f"--steps {name}: {kind}")
        if denoising:
            result.append(ode(denoise, ode_steps, sigma_min, sigma_max, rho))
        elif n_steps is not None:
            if int(name) != n_steps:
                raise ConfigError(f"--steps {name}: this student was trained for {n_steps} and makes no other number")
            result.append(euler_steps(denoise, n_steps, sigma_min, sigma_max, rho))
        elif int(name) not in (1, len(times)):
            raise ConfigError(
                f"--steps {name} needs {name} noise levels and there are {len(times)} ({list(times)}); "
                "give them with --times"
            )
        elif makes == "jump":
            result.append(jumps(partial(solvers.mean_jump, denoise), [*times[: int(name)], sigma_min]))
        elif name == "1":
            result.append(one_step(denoise, sigma_max))
        else:
            result.append(multistep(denoise, times, sigma_min))
    return result
