"""Trained runs and files of weights: whether what a configuration names is there, and how it is opened."""

from dataclasses import dataclass

import safetensors.torch
import torch

from cmdist import config as configuration
from cmdist.checkpoints import checkpoint as checkpoints
from cmdist.checkpoints import search
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.checkpoints.layout import weights_of_network
from cmdist.config import Config
from cmdist.errors import CheckpointError, ConfigError
from cmdist.nets import released
from cmdist.nets.lpips import SOURCE
from cmdist.system import storage


def uses_lpips(config: Config) -> bool:
    """Whether the loss looks through VGG."""
    return config.objective != "denoising" and config.loss.distance == "lpips"


def check_weights(config: Config, run_url: str, mode: str) -> None:
    """The teacher, the weights of LPIPS and, unless run.json is there, the start are there if the run needs them;
    nothing is loaded.

    `mode` is that of --resume. Raises CheckpointError, ConfigError.
    """
    needed: dict[str, str | None] = {}
    if config.objective == "consistency_distillation":
        needed["teacher"] = config.teacher
    start = ("teacher", config.teacher) if config.init == "teacher" else ("init", config.init)
    if (
        start[1]
        and start[0] not in needed
        and mode in ("auto", "none")
        and not storage.exists(storage.join(run_url, "run.json"))
    ):
        needed |= [start]
    for key, url in needed.items():
        if url is None or url == "exact":
            continue
        if not released.is_file(url):
            open_run(url)
        elif not storage.exists(url):
            raise ConfigError(f"{key} {url} is not there")
        elif key == "teacher" and config.objective == "consistency_distillation":
            released.check_kind(url, denoising=True)
    weights = config.loss.lpips_weights
    if weights and uses_lpips(config) and not storage.exists(weights):
        raise ConfigError(
            f"loss.lpips_weights {weights} is not there; get VGG16's weights from {SOURCE} and name that file"
        )


@dataclass(frozen=True)
class TrainedRun:
    """A committed checkpoint together with the configuration of its run."""

    checkpoint: Checkpoint
    config: Config

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.checkpoint.step


def open_run(url: str, step: int | None = None) -> TrainedRun:
    """The newest (or a given) committed checkpoint of a run folder, or the checkpoint whose own folder is given. Raises
    CheckpointError.
    """
    run_url, _, name = url.rstrip("/").rpartition("/checkpoints/")
    chosen, url = (url, run_url) if run_url and name.startswith("step-") else ("", url)
    try:
        config_url = storage.join(url, "config.yaml")
        config = configuration.parse(storage.read(config_url).decode(), where=config_url)
    except FileNotFoundError:
        raise CheckpointError(f"{url} is not a run folder: it has no config.yaml") from None
    if chosen:
        return TrainedRun(search.open_folder(chosen), config)
    found = search.open_checkpoint(url, step) if step is not None else search.newest(url)
    if found is None:
        raise CheckpointError(f"{url} has no committed checkpoint yet")
    return TrainedRun(found, config)


def ema_weights(run: TrainedRun, ema: float | None = None) -> dict[str, torch.Tensor]:
    """The weights of an average by name; the first of train.ema unless a decay is given. Raises CheckpointError if it
    is not there.
    """
    decay = run.config.train.ema[0] if ema is None else ema
    if decay not in run.checkpoint.emas:
        have = ", ".join(map(str, run.checkpoint.emas))
        raise CheckpointError(f"{run.checkpoint.url} has no average with decay {decay}; it has {have}")
    return weights_of_network(safetensors.torch.load(run.checkpoint.read_file(checkpoints.ema_file(decay))))
