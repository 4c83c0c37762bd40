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
from cmdist.core.exact import FiniteDataSet
from cmdist.core.noise import Denoise
from cmdist.data.images import ShardedImages, open_dataset
from cmdist.errors import CheckpointError, ConfigError, DataError
from cmdist.evaluation import extractors
from cmdist.nets import released
from cmdist.nets.lpips import SOURCE, fingerprint
from cmdist.system import sharing, storage
from cmdist.system.distributed import World


def check_weights(config: Config, run_url: str, mode: str) -> None:
    """Teacher, helper, weights of LPIPS and, unless run.json is there, the start are there if the run needs them;
    nothing is loaded.

    `mode` is that of --resume. Raises CheckpointError, ConfigError.
    """
    needed: dict[str, str | None] = {}
    if config.teacher is not None:
        needed["objective.teacher"] = config.teacher
    if config.guide is not None:
        needed["objective.guide"] = config.guide
    if config.frozen is not None:
        needed[f"objective.{config.kind.frozen}"] = config.frozen
    start = ("objective.teacher", config.teacher) if config.init == "teacher" else ("init", config.init)
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
        if not url.strip():
            raise ConfigError(f"{key} is empty: a run folder, a checkpoint folder or a file of weights is needed")
        if key == f"objective.{config.kind.frozen}" or not released.is_file(url):
            try:
                open_run(url)
            except CheckpointError as error:
                raise type(error)(f"{key}: {error}") from error
        elif not storage.exists(url):
            raise ConfigError(f"{key} {url} is not there")
        elif key in ("objective.teacher", "objective.guide"):
            released.check_kind(url, denoising=True)
    if config.lpips and not storage.exists(config.lpips.weights):
        raise ConfigError(
            f"objective.distance.weights {config.lpips.weights} is not there; "
            f"get VGG16's weights from {SOURCE} and name that file"
        )


@dataclass(frozen=True)
class TrainedRun:
    """A committed checkpoint together with the configuration that it was trained with."""

    checkpoint: Checkpoint
    config: Config

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.checkpoint.step


def refuse_other(url: str) -> None:
    """Raise CheckpointError if this is no run folder."""
    if not storage.exists(storage.join(url, "config.yaml")):
        raise CheckpointError(f"{url} is not a run folder: it has no config.yaml")


def open_run(url: str, step: int | None = None) -> TrainedRun:
    """The newest (or a given) committed checkpoint of a run folder, or the checkpoint whose own folder is given.
    Raises CheckpointError.
    """
    run_url, _, name = url.rstrip("/").rpartition("/checkpoints/")
    chosen, url = (url, run_url) if run_url and name.startswith("step-") else ("", url)
    refuse_other(url)
    if chosen:
        checkpoint: Checkpoint | None = search.open_folder(chosen)
    else:
        checkpoint = search.open_checkpoint(url, step) if step is not None else search.newest(url)
    if checkpoint is None:
        raise CheckpointError(f"{url} has no committed checkpoint yet")
    return TrainedRun(checkpoint, config_of(checkpoint))


def described(url: str, file: str) -> Config:
    """The configuration file `url` that says what a file of weights is. Raises ConfigError."""
    if not released.is_file(file):
        raise ConfigError(f"{file} is not a file of weights; its name must end in {', '.join(released.ENDINGS)}")
    config = configuration.load(url)
    released.check_kind(file, config.kind.makes == "denoiser")
    return config


BEFORE = "config-of-format-1.yaml"  # what an older version wrote: its checkpoints do not know their configuration


def config_of(checkpoint: Checkpoint) -> Config:
    """The configuration that a checkpoint was trained with; where things are is what its run's config.yaml says now.

    Raises CheckpointError if nothing says it, ConfigError, FormatError.
    """
    run_url, where = checkpoint.url.rpartition("/checkpoints/")[0], f"{checkpoint.url}/state.json"
    newest = _read_config(storage.join(run_url, "config.yaml"))
    if "config" in checkpoint.state:
        own = configuration.of_tree(checkpoint.state["config"], where)
    else:
        old = _read_config(storage.join(run_url, BEFORE)) or newest
        if old is None:
            raise CheckpointError(f"{run_url} is not a run folder: it has no config.yaml")
        own = configuration.overlaid(old, checkpoint.state.get("known", {}), where)
    return configuration.at_places_of(own, newest) if newest is not None else own


def _read_config(url: str) -> Config | None:
    try:
        return configuration.fixed(configuration.parse(storage.read(url).decode(), where=url))
    except FileNotFoundError:
        return None


def measured(config: Config, index_hash: str) -> dict[str, str]:
    """Hashes of what a run learns from, by the key that names it."""
    hashes = {"data.url": index_hash}
    if config.lpips:
        hashes["objective.distance.weights"] = fingerprint(config.lpips.weights)
    if config.classifier:
        hashes["objective.distance.extractor"] = extractors.classifier(open_dataset(config.classifier))[1]
    return hashes


def ema_weights(run: TrainedRun, ema: float | None = None) -> dict[str, torch.Tensor]:
    """The weights of an average by name; the first of train.ema unless a decay is given.
    Raises CheckpointError if it is not there.
    """
    decay = run.config.train.ema[0] if ema is None else ema
    if decay not in run.checkpoint.emas:
        have = ", ".join(map(str, run.checkpoint.emas))
        raise CheckpointError(f"{run.checkpoint.url} has no average with decay {decay}; it has {have}")
    return weights_of_network(safetensors.torch.load(run.checkpoint.read_file(checkpoints.ema_file(decay))))


class Weights:
    """The weights of runs and files, which one rank of a world reads, each once, for all of them."""

    def __init__(self, world: World | None = None) -> None:
        self._world = world or World()
        self._files: dict[str, dict[str, torch.Tensor]] = {}
        self._runs: dict[str, tuple[TrainedRun, dict[str, torch.Tensor]]] = {}

    def file(self, url: str, head_channels: int) -> dict[str, torch.Tensor]:
        """Those of a file. Raises CheckpointError, ConfigError."""
        if url not in self._files:
            self._files[url] = sharing.tensors_once(self._world, lambda: released.read(url, head_channels))
        return self._files[url]

    def run(self, url: str) -> tuple[TrainedRun, dict[str, torch.Tensor]]:
        """A run with its first average. Raises CheckpointError."""
        if url not in self._runs:
            run = sharing.once(self._world, lambda: open_run(url))
            self._runs[url] = run, sharing.tensors_once(self._world, lambda: ema_weights(run))
        return self._runs[url]


def exact_teacher(data: ShardedImages, device: torch.device, conditional: bool) -> Denoise:
    """The closed-form denoiser of a small data set held in memory. Raises as `check_exact`."""
    check_exact(data, conditional)
    ids = range(len(data))
    images = data.images(ids).to(device).float() / 127.5 - 1.0
    return FiniteDataSet(images, data.labels(ids).to(device) if conditional else None)


def check_exact(data: ShardedImages, conditional: bool, most: int = 100_000) -> None:
    """The data set can be a teacher. Raises ConfigError above `most` images, DataError if a class has none."""
    if len(data) > most:
        raise ConfigError(
            f"teacher: exact holds the whole data set in memory, for at most {most} images; this one has {len(data)}"
        )
    ids = range(len(data))
    if conditional and len(data.labels(ids).unique()) < len(data.classes):
        raise DataError(f"teacher: exact needs an image of each of the {len(data.classes)} classes of {data.url}")
