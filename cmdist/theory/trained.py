"""Trained runs beside the exact function of their data set, for docs/studies/multistep.md."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmdist import build
from cmdist.core.noise import Denoise
from cmdist.errors import ConfigError
from cmdist.evaluation import extractors
from cmdist.evaluation.generation import to_uint8
from cmdist.evaluation.metrics.frechet import Moments, frechet_distance
from cmdist.models import open_run
from cmdist.report.tables import Row
from cmdist.theory import digits
from cmdist.theory.digits import Truth
from cmdist.theory.limit import grid

CPU = torch.device("cpu")
LEVELS = 21  # of the grid whose times are tried: the last one of consistency training in configs/digits/ct.yaml
LOW, HIGH = 0.03, 20.0


def compare(urls: Sequence[str], n: int = 1000, inspected: int = 200) -> tuple[list[Row], list[Row], list[Row]]:
    """What was run; errors over sigma; Frechet distances over tau: for runs on one small data set with classes, the
    exact function of its images, and training's fixed point. Raises CheckpointError, ConfigError, DataError.
    """
    runs = [open_run(url) for url in urls]
    for run in runs:
        if run.config.kind.makes != "consistency" or not run.config.data.classes:
            raise ConfigError(f"{run.checkpoint.url} is no consistency model with classes; this page needs such runs")
    if len({run.config.data.url for run in runs}) > 1:
        raise ConfigError("the runs of one page must share a data set; these have " + ", ".join(urls))
    data = build.dataset(runs[0].config)
    ids = range(len(data))
    images, labels = data.images(ids).float() / 127.5 - 1, data.labels(ids)
    truth = Truth(images, labels)
    extractor = extractors.own(data, CPU)
    reference = moments(extractor, data.images(ids)).statistics()

    def measure(images: Tensor) -> float:
        return frechet_distance(moments(extractor, to_uint8(images)).statistics(), reference)

    times = [s for s in grid(LEVELS) if LOW < s < HIGH]
    sigmas = [s for s in grid(LEVELS) if s > 0.01]
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:inspected]
    told: list[Row] = []
    models: dict[str, Denoise] = {}
    for run in runs:
        name, levels = run.config.run.name, int(build.numbers(run.config, run.step)["n_timesteps"])
        models[name] = build.load_denoiser(run)
        told.append({"run": name, "objective": run.config.kind_name, "steps": run.step, "levels": levels})
    models["fixed point"] = truth.training(LEVELS)
    distances: list[Row] = []
    with torch.inference_mode():
        errors = digits.error_over_sigma(models, images[some], labels[some], truth, sigmas)
        for name, model in [*models.items(), ("exact", truth.consistency)]:
            distances += digits.over_tau(name, model, images.shape[1:], len(data.classes), times, measure, n)
    return told, errors, distances


def moments(extractor: extractors.Extractor, images: Tensor) -> Moments:
    """Of the features of uint8 images."""
    sums = Moments(extractor.dimensions)
    sums.add(extractor.features(images))
    return sums
