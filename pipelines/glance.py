"""A quick look at a committed checkpoint, beside training:
validation figures, sample grids, one-step quality from few images.

python pipelines/glance.py RUN --checkpoint STEP

Training starts this by itself (train.glance_every), at lowest priority; it may fail or take its time. Everything is a
function of the checkpoint's averages and the configuration: the first average of train.ema, the data set's first
images, noise of a fixed seed and a fixed grid of noise levels, none of which depends on the run's seed, N(k) or ranks.
What it finds goes to RUN/glances and MLflow.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from cmdist import build, models, pins, quality, seeding, teachers
from cmdist import config as configuration
from cmdist.checkpoints import record
from cmdist.config import Config
from cmdist.core.noise import Denoise, karras_sigmas
from cmdist.data.images import ShardedImages
from cmdist.evaluation import glance, stored
from cmdist.models import TrainedRun
from cmdist.quality import Request
from cmdist.system import cli, locks, storage
from cmdist.system.distributed import World
from cmdist.tracking import courier, environment
from cmdist.tracking import mlflow as tracking

IMAGES = 64  # of the validation
LEVELS = 18  # of its grid
LONGEST = 7200.0  # seconds for which it waits for the glance before it


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--checkpoint", type=int, required=True, metavar="STEP")
    options = parser.parse_args(arguments)
    run_url = storage.absolute(options.run)
    with cli.before_start():  # nothing is made before it is known to be right
        models.open_run(run_url, options.checkpoint)
        record.read(run_url)
    spool = tracking.spool_folder(run_url)
    spool.mkdir(parents=True, exist_ok=True)
    with (spool / "glance.lock").open("a") as lock:
        # one at a time, also over restarts of the training
        locks.take(lock.fileno(), f"looking at {run_url}", LONGEST)
        look(run_url, options.checkpoint, spool)


def look(run_url: str, step: int, spool: Path) -> None:
    """Look at a checkpoint, unless that has been done, and send what was seen."""
    quality.set_up_process()  # the same weights give the same bits as in evaluation
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begin = time.monotonic()
    run = models.open_run(run_url, step)
    known = record.read(run_url)
    run = dataclasses.replace(run, config=pins.opened_at(run.config, known.get("pins", {})))
    config, tracked = run.config, known["tracking_uri"] != "none"
    weights = run.checkpoint.weights_of(config.train.ema[0])
    stem = storage.join(run_url, "glances", f"step-{step:010d}")
    if stored.seen(f"{stem}.json") != weights:
        data, denoise = build.dataset(config), build.load_denoiser(run, device=device)
        samplers, classes = quality.samplers(config, denoise, step=step), config.data.classes
        grids = glance.sample_grids(
            samplers, quality.shape(config), classes, quality.present(config, data), device, stem, spool
        )
        consistency = quality.consistency(config, denoise)
        figures = {} if consistency is None else validate(config, data, consistency, device)
        seen = {
            "step": step,
            "weights": weights,
            "ema": config.train.ema[0],
            "device": device.type,
            "images": IMAGES,
        }
        seen |= {"code": environment.git_commit(), "values": figures, "seconds": time.monotonic() - begin}
        storage.write(f"{stem}.json", json.dumps(seen, indent=1).encode())
        if tracked:
            glance.send(spool, step, figures, grids)
    print(f"step {step}: seen after {time.monotonic() - begin:.1f} s", flush=True)
    try:
        measure(run, device)
    finally:
        courier.deliver(spool) if tracked else None


def measure(run: TrainedRun, device: torch.device) -> None:
    """One-step quality (of a denoising run, by its ODE) from few images, as evaluations measure it."""
    config, metrics = run.config, None
    if not build.dataset(config).index.get("extractor"):
        if config.evaluation.inception is None:
            print(
                "no quality at a glance: the data set has no extractor of its own, and evaluation.inception is not set",
                flush=True,
            )
            return
        metrics = ["kid"]  # so few images are too few for a Frechet distance in Inception's 2048 features
    request = Request(config.train.glance_images, metrics=metrics, steps=config.usual_steps(run.step)[:1])
    quality.measure_run(run, request, World(device=device), None, partial(print, flush=True))


def validate(config: Config, data: ShardedImages, consistency: Denoise, device: torch.device) -> dict[str, float]:
    """Errors of the data set's first images, with noise of a fixed seed on a fixed grid; see glance.validate."""
    noise, ids = config.noise, range(min(IMAGES, len(data)))
    images = data.images(ids).to(device).float() / 127.5 - 1.0
    labels = data.labels(ids).to(device) if config.data.classes else None
    noises = torch.randn(images.shape, generator=seeding.generator("cpu", 0, "validation")).to(device)
    teacher = teachers.teacher(configuration.replaced(config, {"train.compile": False}), data, device)
    sigmas = karras_sigmas(LEVELS, noise.sigma_min, noise.sigma_max, noise.rho)
    return glance.validate(consistency, teacher, images, noises, labels, sigmas, noise.sigma_max)


if __name__ == "__main__":
    cli.run(main)
