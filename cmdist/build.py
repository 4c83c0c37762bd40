"""From configuration to objects: one plain place to see what runs for `objective: consistency_distillation`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cmdist import config as configuration
from cmdist import storage
from cmdist.config import Config
from cmdist.core import curricula, distances, noise, preconditioning, solvers
from cmdist.core.exact import FiniteDataSet
from cmdist.core.noise import Denoise
from cmdist.core.objectives.base import Objective
from cmdist.core.objectives.consistency import Consistency
from cmdist.core.objectives.denoising import Denoising
from cmdist.data.images import ShardedImages, open_dataset
from cmdist.errors import CheckpointError, ConfigError, DataError
from cmdist.nets.unet import UNet
from cmdist.train import checkpoint as checkpoints
from cmdist.train.checkpoint import Checkpoint
from cmdist.train.optim import learning_rate

SOLVERS = {"euler": solvers.euler_step, "heun": solvers.heun_step}


def network(config: Config) -> UNet:
    """The U-Net of a configuration, weights drawn from the global generator (seed it first)."""
    n = config.network
    return UNet(
        image_size=config.data.image_size,
        in_channels=config.data.channels,
        model_channels=n.model_channels,
        channel_mult=n.channel_mult,
        num_res_blocks=n.num_res_blocks,
        attention_resolutions=n.attention_resolutions,
        head_channels=n.head_channels,
        num_classes=config.data.classes or None,
        dropout=n.dropout,
        scale_shift_norm=n.scale_shift_norm,
        resblock_updown=n.resblock_updown,
        checkpoint_activations=n.checkpoint_activations,
        precision=config.train.precision,
    )


def denoiser(config: Config, net: Callable[..., torch.Tensor]) -> preconditioning.Denoiser:
    """`net` with EDM's scalings for a denoising run, else with those that keep the boundary condition."""
    n = config.noise
    if config.objective == "denoising":
        return preconditioning.Denoiser(net, preconditioning.edm_scalings(n.sigma_data))
    return preconditioning.Denoiser(net, preconditioning.consistency_scalings(n.sigma_data, n.sigma_min))


def objective(config: Config) -> Objective:
    """What is minimised."""
    n, loss = config.noise, config.loss
    if config.objective == "denoising":
        return Denoising(loss.sigma_mean, loss.sigma_std, n.sigma_data)
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    distance: distances.Distance = {
        "l1": distances.l1,
        "l2": distances.l2,
        "pseudo_huber": distances.pseudo_huber(loss.huber_c or distances.huber_c(shape)),
    }[loss.distance]
    index_draw = (
        noise.uniform_index if loss.index == "uniform" else partial(noise.lognormal_index, mean=loss.index_mean, std=loss.index_std)
    )
    return Consistency(
        grid=partial(noise.karras_sigmas, sigma_min=n.sigma_min, sigma_max=n.sigma_max, rho=n.rho),
        index_draw=index_draw,
        distance=distance,
        weighting={"uniform": noise.uniform, "inverse_gap": noise.inverse_gap}[loss.weighting],
        solver_step=SOLVERS[loss.solver] if config.objective == "consistency_distillation" else None,
    )


def curriculum(config: Config) -> curricula.Curriculum:
    """N(k) and mu(k)."""
    c, steps = config.curriculum, config.train.steps
    if c.kind == "constant":
        return curricula.Constant(c.n_timesteps, c.mu)
    if c.kind == "paper":
        return curricula.Paper(c.s0, c.s1, c.mu0, steps, c.mu_form)
    return curricula.Doubling(c.s0, c.s1, steps)


def needs_target(config: Config) -> bool:
    """Whether mu is ever above 0; without it the student itself is the target."""
    c = config.curriculum
    return config.objective != "denoising" and (c.kind == "paper" or (c.kind == "constant" and c.mu > 0))


def lr_schedule(config: Config) -> Callable[[int], float]:
    """step -> learning rate."""
    o = config.optimizer
    return partial(learning_rate, lr=o.lr, total_steps=config.train.steps, warmup_steps=o.warmup_steps, decay_fraction=o.decay_fraction)


def dataset(config: Config) -> ShardedImages:
    """The data set of a run. Raises DataError if its index is not what the configuration says."""
    data = open_dataset(config.data.url, cache=config.data.cache)
    d = config.data
    for key, found, asked in (("image_size", data.image_size, d.image_size), ("channels", data.channels, d.channels)):
        if found != asked:
            raise DataError(f"{d.url}: the images have {key} {found}, data.{key} says {asked}")
    if d.classes and d.classes != len(data.classes):
        raise DataError(f"{d.url}: the data set has {len(data.classes)} classes, data.classes says {d.classes}; 0 trains without labels")
    return data


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
    """The newest (or a given) committed checkpoint of a run folder, or the checkpoint whose own folder is given. Raises CheckpointError."""
    run_url, _, name = url.rstrip("/").rpartition("/checkpoints/")
    chosen, url = (url, run_url) if run_url and name.startswith("step-") else ("", url)
    try:
        config_url = storage.join(url, "config.yaml")
        config = configuration.parse(storage.read(config_url).decode(), where=config_url)
    except FileNotFoundError:
        raise CheckpointError(f"{url} is not a run folder: it has no config.yaml") from None
    if chosen:
        return TrainedRun(checkpoints.open_folder(chosen), config)
    found = checkpoints.open_checkpoint(url, step) if step is not None else checkpoints.newest(url)
    if found is None:
        raise CheckpointError(f"{url} has no committed checkpoint yet")
    return TrainedRun(found, config)


def ema_weights(run: TrainedRun, ema: float | None = None) -> dict[str, torch.Tensor]:
    """The weights of an average by name; the first of train.ema unless a decay is given. Raises CheckpointError if it is not there."""
    decay = run.config.train.ema[0] if ema is None else ema
    if decay not in run.checkpoint.emas:
        have = ", ".join(map(str, run.checkpoint.emas))
        raise CheckpointError(f"{run.checkpoint.url} has no average with decay {decay}; it has {have}")
    return safetensors.torch.load(run.checkpoint.read_file(checkpoints.ema_file(decay)))


def load_denoiser(run: TrainedRun, ema: float | None = None, device: torch.device | str = "cpu") -> Denoise:
    """The network of a checkpoint with the weights of an average, ready to call; evaluation mode, no gradient to the weights."""
    net = network(run.config)
    net.load_state_dict(ema_weights(run, ema))
    return denoiser(run.config, net.to(device).eval().requires_grad_(False))


def teacher(config: Config, data: ShardedImages, device: torch.device) -> Denoise | None:
    """The denoiser that distillation follows: a trained run, or the data set's own closed form. Raises CheckpointError, ConfigError."""
    if config.objective != "consistency_distillation":
        return None
    assert config.teacher is not None
    if config.teacher == "exact":
        return exact_teacher(data, device, conditional=bool(config.data.classes))
    run = open_run(config.teacher)
    theirs, ours = run.config, config
    if theirs.objective != "denoising":
        raise ConfigError(f"teacher {config.teacher} was trained with objective {theirs.objective}; a teacher must be a denoising run")
    for key in ("image_size", "channels", "classes"):
        there, here = getattr(theirs.data, key), getattr(ours.data, key)
        if there != here:
            raise ConfigError(f"teacher {config.teacher} has data.{key} {there}, this run has {here}; they must be equal")
    return load_denoiser(run, device=device)


def exact_teacher(data: ShardedImages, device: torch.device, conditional: bool, most: int = 100_000) -> Denoise:
    """The closed-form denoiser of a small data set held in memory. Raises ConfigError above `most` images."""
    if len(data) > most:
        raise ConfigError(f"teacher: exact holds the whole data set in memory, for at most {most} images; this one has {len(data)}")
    ids = range(len(data))
    if conditional and len(data.labels(ids).unique()) < len(data.classes):
        raise DataError(f"teacher: exact needs an image of each of the {len(data.classes)} classes of {data.url}")
    images = data.images(ids).to(device).float() / 127.5 - 1.0
    return FiniteDataSet(images, data.labels(ids).to(device) if conditional else None)


def initialise(config: Config, net: nn.Module) -> None:
    """Give `net` the weights that `init` names, if any. Raises CheckpointError naming the first difference of architectures."""
    if config.init is None:
        return
    url = config.teacher if config.init == "teacher" else config.init
    assert url is not None
    weights = ema_weights(open_run(url))
    own = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    theirs = {name: tuple(p.shape) for name, p in weights.items()}
    if own != theirs:
        name = next(n for n in [*own, *theirs] if own.get(n) != theirs.get(n))
        raise CheckpointError(
            f"init: {url} has another architecture: {name} is {_shape(theirs.get(name))} there and {_shape(own.get(name))} here; "
            "network.* must be equal"
        )
    net.load_state_dict(weights)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def identity(config: Config, index_hash: str) -> dict[str, Any]:
    """What a run may not change when it is resumed."""
    return {
        "run.seed": config.run.seed,
        "objective": config.objective,
        "data (index hash)": index_hash,
        "data.flip": config.data.flip,
        "data.block_shards": config.data.block_shards,
        "data.classes": config.data.classes,
        "train.global_batch": config.train.global_batch,
        "train.micro_batch": config.train.micro_batch,
        "train.ema": list(config.train.ema),
        "network": config.network.model_dump(mode="json"),
        "optimizer.kind": config.optimizer.kind,
        "target network": needs_target(config),
    }
