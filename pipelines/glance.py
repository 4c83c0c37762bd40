"""A quick look at a committed checkpoint, beside training: validation figures, sample grids, one-step quality from few
images.

python pipelines/glance.py RUN --checkpoint STEP

Training starts this by itself (train.glance_every), at lowest priority; it may fail or take its time. Everything is a
function of the checkpoint's averages and the configuration: the first average of train.ema, the data set's first
images, noise of a fixed seed and a fixed grid of noise levels, none of which depends on the run's seed, N(k) or ranks.
What it finds goes to RUN/glances and MLflow.
"""

import argparse
import dataclasses
import fcntl
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate  # pipelines/evaluate.py
import torch

from cmdist import build, pins, runs, seeding
from cmdist import config as configuration
from cmdist.checkpoints import record
from cmdist.checkpoints.checkpoint import ema_file
from cmdist.core import sampling, validation
from cmdist.core.noise import Denoise, karras_sigmas
from cmdist.core.solvers import heun_step
from cmdist.data.images import ShardedImages
from cmdist.evaluation import generation, measurement, pictures
from cmdist.evaluation.generation import Task
from cmdist.runs import TrainedRun
from cmdist.system import cli, storage
from cmdist.tracking import courier, environment
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.journal import Journal, now

IMAGES = 64  # of the validation
LEVELS = 18  # of its grid
ROWS = 4  # of a sample grid


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--checkpoint", type=int, required=True, metavar="STEP")
    options = parser.parse_args(arguments)
    run_url = storage.absolute(options.run)
    spool = tracking.spool_folder(run_url)
    spool.mkdir(parents=True, exist_ok=True)
    with (spool / "glance.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time, also over restarts of the training
        glance(run_url, options.checkpoint, spool)


def glance(run_url: str, step: int, spool: Path) -> None:
    """Look at a checkpoint, unless that has been done, and send what was seen."""
    measurement.set_arithmetic()
    torch.set_num_threads(1)  # as in evaluation: the same weights give the same bits
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begin = time.monotonic()
    run = runs.open_run(run_url, step)
    known = record.read(run_url)
    run = dataclasses.replace(run, config=pins.opened_at(run.config, known.get("pins", {})))
    tracked = known["tracking_uri"] != "none"
    weights = f"xxh3:{run.checkpoint.commit['files'][ema_file(run.config.train.ema[0])]['xxh3']}"
    stem = storage.join(run_url, "glances", f"step-{step:010d}")
    if not storage.exists(f"{stem}.json") or json.loads(storage.read(f"{stem}.json"))["weights"] != weights:
        data, denoise = build.dataset(run.config), build.load_denoiser(run, device=device)
        grids = sample_grids(run, denoise, device, stem, spool)
        figures = {} if run.config.kind.makes == "denoiser" else validate(run, data, denoise, device)
        seen = {
            "step": step,
            "weights": weights,
            "ema": run.config.train.ema[0],
            "device": device.type,
            "images": IMAGES,
        }
        seen |= {"code": environment.git_commit(), "values": figures, "seconds": time.monotonic() - begin}
        storage.write(f"{stem}.json", json.dumps(seen, indent=1).encode())
        if tracked:
            send(spool, step, figures, grids)
    print(f"step {step}: seen after {time.monotonic() - begin:.1f} s", flush=True)
    kind = "heun" if run.config.kind.makes == "denoiser" else "1"
    quick = [run_url, "--checkpoint", step, "--steps", kind, "--n", run.config.train.glance_images]
    if not build.dataset(run.config).index.get("extractor"):
        if run.config.evaluation.inception is None:
            print(
                "no quality at a glance: the data set has no extractor of its own, and evaluation.inception is not set",
                flush=True,
            )
            courier.deliver(spool) if tracked else None
            return
        quick += ["--metrics", "kid"]  # so few images are too few for a Frechet distance in Inception's 2048 features
    try:
        evaluate.main([str(word) for word in quick])
    finally:
        courier.deliver(spool) if tracked else None


def validate(run: TrainedRun, data: ShardedImages, consistency: Denoise, device: torch.device) -> dict[str, float]:
    """The fixed-grid consistency error; with a teacher also along its ODE, and the distance of one step from the ODE's
    end.
    """
    config, noise = run.config, run.config.noise
    ids = range(min(IMAGES, len(data)))
    images = data.images(ids).to(device).float() / 127.5 - 1.0
    labels = data.labels(ids).to(device) if config.data.classes else None
    noises = torch.randn(images.shape, generator=seeding.generator("cpu", 0, "validation")).to(device)
    teacher = build.teacher(configuration.replaced(config, {"train.compile": False}), data, device)
    sigmas = karras_sigmas(LEVELS, noise.sigma_min, noise.sigma_max, noise.rho)
    size = generation.group_size(*images.shape[2:])
    sums: dict[str, float] = {}

    def add(name: str, error: torch.Tensor, part: slice) -> None:
        share = len(images[part]) / len(images)
        sums[name] = sums.get(name, 0.0) + share * float(error)

    for first in range(0, len(images), size):
        part = slice(first, first + size)
        x, z, y = images[part], noises[part], None if labels is None else labels[part]
        add("consistency_error", validation.grid_errors(consistency, x, z, sigmas, y).mean(), part)
        if teacher is not None:
            add(
                "consistency_error_ode",
                validation.grid_errors(consistency, x, z, sigmas, y, teacher, heun_step).mean(),
                part,
            )
            end = sampling.ode(teacher, z, sigmas, heun_step, y, clip=False)
            add(
                "teacher_distance",
                validation.rms(sampling.one_step(consistency, z, noise.sigma_max, y, clip=False) - end),
                part,
            )
    return sums


def sample_grids(run: TrainedRun, denoise: Denoise, device: torch.device, stem: str, spool: Path) -> list[Path]:
    """Grids of the same seeds at every step, beside `stem` (.png, and .npz for comparisons); local copies of the
    pictures.
    """
    config, noise = run.config, run.config.noise
    shape, classes = (config.data.channels, config.data.image_size, config.data.image_size), config.data.classes
    columns = pictures.columns(classes)
    samplers = generation.samplers(
        denoise,
        None,
        config.sampling.times,
        denoising=config.kind.makes == "denoiser",
        ode_steps=config.sampling.ode_steps,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        rho=noise.rho,
    )
    made = []
    for sampler in samplers:
        task = Task(range(ROWS * columns), shape, classes, sampler.draws)
        parts = [images[task.part(group)].cpu() for group, images in generation.generate(task, sampler.sample, device)]
        images = torch.cat(parts)
        name = f"{stem}-{sampler.name}"
        picture = pictures.png(pictures.grid(images, columns, max(1, 40 // shape[1])))
        storage.write(f"{name}.png", picture)
        storage.write(f"{name}.npz", pictures.pack(images, columns))
        path = storage.local_path(f"{name}.png")
        if path is None:  # the courier takes it from here, whenever the server is there
            path = spool / name.rpartition("/")[2]
            path.write_bytes(picture)
        made.append(path)
    return made


def send(spool: Path, step: int, figures: dict[str, float], grids: Sequence[Path]) -> None:
    """Put what was seen into the run's journal; the courier brings it to MLflow, like all points of the training."""
    records: list[dict[str, Any]] = [
        {"kind": "artifact", "path": str(path.absolute()), "folder": "glances"} for path in grids
    ]
    if figures:
        records.append({"kind": "metrics", "time": now(), "step": step, "values": figures})
    journal = Journal(spool)
    for each in records:
        journal.append(each)
    journal.close()


if __name__ == "__main__":
    cli.run(main)
