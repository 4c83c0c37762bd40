"""What a glance at a checkpoint sees: sample grids of the same seeds, and errors on a fixed grid of noise levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmdist.core import sampling, validation
from cmdist.core.noise import Denoise
from cmdist.core.solvers import heun_step
from cmdist.evaluation import generation, pictures
from cmdist.evaluation.generation import Sampler, Task
from cmdist.system import storage
from cmdist.tracking.journal import Journal, now


def validate(
    consistency: Denoise,
    teacher: Denoise | None,
    images: Tensor,
    noises: Tensor,
    labels: Tensor | None,
    sigmas: Tensor,
    sigma_max: float,
) -> dict[str, float]:
    """The fixed-grid consistency error of images in [-1,1] (B,C,H,W); with a teacher also along its ODE, and the
    distance of one step from the ODE's end. `sigmas` descend from sigma_max.
    """
    size = generation.group_size(*images.shape[2:])
    sums: dict[str, float] = {}

    def add(name: str, error: Tensor, part: slice) -> None:
        share = len(images[part]) / len(images)
        sums[name] = sums.get(name, 0.0) + share * float(error)

    for first in range(0, len(images), size):
        part = slice(first, first + size)
        x, z, y = images[part], noises[part], None if labels is None else labels[part]
        add("consistency_error", validation.grid_errors(consistency, x, z, sigmas, y).mean(), part)
        if teacher is not None:
            along = validation.grid_errors(consistency, x, z, sigmas, y, teacher, heun_step)
            add("consistency_error_ode", along.mean(), part)
            end = sampling.ode(teacher, z, sigmas, heun_step, y, clip=False)
            step = sampling.one_step(consistency, z, sigma_max, y, clip=False)
            add("teacher_distance", validation.rms(step - end), part)
    return sums


def sample_grids(
    samplers: Sequence[Sampler],
    shape: tuple[int, int, int],
    classes: int,
    present: Sequence[int],
    device: torch.device,
    stem: str,
    spool: Path,
) -> list[Path]:
    """Grids of the same seeds at every step, beside `stem` (.png, and .npz for comparisons);
    local copies of the pictures.
    """
    columns, grids = pictures.columns(len(present) or classes), []
    for sampler in samplers:
        task = Task(range(pictures.ROWS * columns), shape, classes, sampler.draws, present)
        name = f"{stem}-{sampler.name}"
        picture = pictures.write(name, generation.images(task, sampler.sample, device), columns)
        path = storage.local_path(f"{name}.png")
        if path is None:  # the courier takes it from here, whenever the server is there
            path = spool / name.rpartition("/")[2]
            path.write_bytes(picture)
        grids.append(path)
    return grids


def send(spool: Path, step: int, figures: dict[str, float], grids: Sequence[Path]) -> None:
    """Put what was seen into the run's journal; the courier brings it to MLflow, like all points of the training."""
    entries: list[dict[str, Any]] = [
        {"kind": "artifact", "path": str(path.absolute()), "folder": "glances"} for path in grids
    ]
    if figures:
        entries.append({"kind": "metrics", "time": now(), "step": step, "values": figures})
    journal = Journal(spool)
    for each in entries:
        journal.append(each)
    journal.close()
