"""From configuration to objects: one plain place to see what runs for `objective: consistency_distillation`."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmdist import config as configuration
from cmdist.checkpoints.layout import Trained, network_of, refuse_untrained
from cmdist.config import Config
from cmdist.core import distances, preconditioning
from cmdist.core.objectives.base import At, Objective
from cmdist.data.cache import Cache, default_folder
from cmdist.data.images import ShardedImages, open_dataset
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import extractors
from cmdist.kinds.distances import Features, Lpips, plain
from cmdist.kinds.kind import Parts
from cmdist.kinds.networks import NETWORKS
from cmdist.models import TrainedRun, Weights, described, ema_weights, open_run
from cmdist.nets import group_norm, released
from cmdist.nets.classifier import Classifier, Layers
from cmdist.nets.lpips import load_lpips
from cmdist.nets.songunet import SongUNet
from cmdist.nets.undrawn import Undrawn
from cmdist.nets.unet import OF_STUDENTS, UNet
from cmdist.sections import Section
from cmdist.system import sharing, storage
from cmdist.system.distributed import World
from cmdist.train.optim import learning_rate

# keys that change what a network computes and not the shapes of its weights, with what they are where they are not
UNSEEN = {
    "noise.c_noise": "log",
    "objective.prediction": "edm",
    "network.time_factor": 1000.0,
    "network.fourier_scale": None,
    "network.double_norm": False,
    "network.norm_groups": None,
}


def network(config: Config) -> nn.Module:
    """The network of a configuration, weights drawn from the global generator (seed it first). Raises ConfigError."""
    net = NETWORKS[config.network.kind].make(config.network, config.images, config.train.precision)  # type: ignore[attr-defined]
    refuse_untrained(net)
    return net


def on_meta(config: Config) -> nn.Module:
    """The same without memory for its weights."""
    with torch.device("meta"), Undrawn():
        return network(config)


def trained(config: Config) -> nn.Module:
    """All that is trained: the network, and what the objective trains beside it."""
    net, extra = network(config), config.kind.extra
    return Trained(net, extra(config.objective)) if extra else net


def lowered(module: nn.Module) -> nn.Module:
    """A copy of what is trained for calls without gradient:
    the same output, from weights in the precision that they are used in.
    """
    twin = copy.deepcopy(module).requires_grad_(False)
    lower(network_of(twin))
    return twin


def lower(net: nn.Module) -> None:
    """Keep the weights of a network that does not learn in the precision that they are used in."""
    if isinstance(net, UNet | SongUNet):
        net.lower()


def compiled(config: Config, net: nn.Module) -> nn.Module:
    """`net`, compiled in place if `train.compile` says so;
    names of weights stay, and a copy of it is not compiled yet.
    """
    if config.train.compile:
        # torch's own random numbers, so that dropout masks are those of `same_dropout` in every graph: with and without
        # gradient
        options: dict[str, Any] = {"fallback_random": True}
        # a mask follows the layout in memory, which inductor may choose otherwise where there is a gradient
        if config.dropout:
            options["layout_optimization"] = False
        net.compile(dynamic=False, options=options)
    return net


def set_arithmetic(config: Config) -> None:
    """How GPUs compute in this process. Call it before anything runs on one."""
    # fp32 means TF32 in all products; torch would take it for convolutions only
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True  # shapes never change: measured once, the fastest kernel is kept


def model(config: Config, net: Callable[..., torch.Tensor]) -> preconditioning.Model:
    """`net` with the scalings of the configuration's objective."""
    return preconditioning.Model(net, config.kind.scalings(config.objective, config.noise))


def denoiser_of(config: Config, net: Callable[..., torch.Tensor]) -> preconditioning.Model:
    """`net` as a denoiser, whatever the configuration's objective is: a file of weights says no more than its keys."""
    return preconditioning.Model(net, preconditioning.edm_scalings(config.noise.sigma_data))


def distance(
    config: Config, keys: Section, device: torch.device | str = "cpu", world: World | None = None
) -> distances.Distance:
    """d(x, y) by the keys of a distance; LPIPS is compiled if networks are. Raises ConfigError without its weights."""
    if isinstance(keys, Lpips):
        network = load_lpips(keys.weights, keys.pooling, device, keys.precision, world)
        return distances.lpips(compiled(config, network), network.features)
    if isinstance(keys, Features):
        url = keys.extractor or config.data.url
        state = sharing.tensors_once(world or World(), lambda: _classifier(url).state_dict())
        layers = Layers(Classifier.from_state_dict(state)).to(device)
        return distances.Perceptual(layers, layers.features, None)
    return plain(keys, (config.data.channels, config.data.image_size, config.data.image_size))


def _classifier(url: str) -> Classifier:
    return extractors.classifier(open_dataset(url))[0]


def objective(config: Config, distance: Callable[[Section], distances.Distance]) -> Objective:
    """What is minimised; `distance` gives d(x, y) by its keys."""
    size = config.data.image_size
    parts = Parts(config.noise, (config.data.channels, size, size), config.train.steps, distance)
    return config.kind.make(config.objective, parts)


def numbers(config: Config, step: int) -> At:
    """The objective's numbers of a step (N, mu, ...), without any weights."""
    return objective(config, lambda keys: distances.l2).at(step)


def needs_target(config: Config) -> bool:
    """Whether a target network follows the student; without it the student itself is the target."""
    return config.kind.target(config.objective)


def lr_schedule(config: Config) -> Callable[[int], float]:
    """step -> learning rate."""
    o = config.optimizer
    return partial(
        learning_rate,
        lr=o.lr,
        total_steps=o.decay_end or config.train.steps,
        warmup_steps=o.warmup_steps,
        decay_fraction=o.decay_fraction,
    )


def dataset(config: Config, world: World | None = None) -> ShardedImages:
    """The data set of a run; all ranks of a `world` must call.
    Raises DataError if its index is not what the configuration says.
    """
    d = config.data
    folder = Path(d.cache) if d.cache else default_folder()
    data = open_dataset(d.url, Cache(folder, int(d.cache_gib * 2**30) if d.cache_gib else None), world=world)
    sizes = sorted(shard["size"] for shard in data.index["shards"])
    needed = sum(sizes[-(2 * d.block_shards + 1) :])
    if d.cache_gib and storage.local_path(d.url) is None and d.cache_gib * 2**30 < needed:
        raise DataError(
            f"data.cache_gib ({d.cache_gib}) is too small for {d.url}: two blocks of {d.block_shards} "
            "shards and one more need "
            f"{needed / 2**30:.3g}; raise it or lower data.block_shards"
        )
    for key, own, expected in (("image_size", data.image_size, d.image_size), ("channels", data.channels, d.channels)):
        if own != expected:
            raise DataError(f"{d.url}: the images have {key} {own}, data.{key} says {expected}")
    if d.classes and not data.labelled:
        raise DataError(f"{d.url}: the data set has no labels, data.classes says {d.classes}; 0 trains without labels")
    if d.classes and d.classes != len(data.classes):
        raise DataError(
            f"{d.url}: the data set has {len(data.classes)} classes, data.classes says {d.classes}; "
            "0 trains without labels"
        )
    return data


def load_denoiser(
    run: TrainedRun, ema: float | None = None, device: torch.device | str = "cpu"
) -> preconditioning.Model:
    """The network of a checkpoint with the weights of an average, ready to call;
    evaluation mode, no gradient to the weights.
    """
    return ready(run.config, ema_weights(run, ema), run.checkpoint.url, device)


def ready(
    config: Config,
    weights: Mapping[str, torch.Tensor],
    where: str,
    device: torch.device | str,
    wrap: Callable[[Config, nn.Module], preconditioning.Model] | None = None,
) -> preconditioning.Model:
    """The network of a configuration with weights of `where`; evaluation mode, no gradient to the weights."""
    with Undrawn():
        net = network(config)
    released.load(net, weights, where)
    return (wrap or model)(config, net.to(device).eval().requires_grad_(False))


@dataclass(frozen=True)
class Model:
    """Weights by name, with the configuration that says what they are."""

    title: str
    config: Config
    weights: Mapping[str, torch.Tensor]
    where: str
    step: int | None = None  # of training; None: all of it

    def denoiser(self, device: torch.device | str = "cpu") -> preconditioning.Model:
        """Ready to call; evaluation mode, no gradient to the weights."""
        return ready(self.config, self.weights, self.where, device)


def open_model(
    url: str, ema: float | None = None, file: str | None = None, qkv_order: released.QkvOrder | None = None
) -> Model:
    """A run folder's average or, given `file`, its weights under the configuration file `url`.
    Raises CheckpointError, ConfigError.
    """
    if file is None:
        if qkv_order:
            raise ConfigError("--qkv-order is for files of weights, given with --weights; a run's own order is known")
        run = open_run(url)
        return Model(
            f"{run.config.run.name}, step {run.step}", run.config, ema_weights(run, ema), run.checkpoint.url, run.step
        )
    config = described(url, file)
    return Model(file.rpartition("/")[2], config, released.read(file, head_channels(config), qkv_order), file)


def head_channels(config: Config) -> int:
    """Of an attention head, which files of weights do not say. Raises ConfigError if the configuration does not say how
    many groups their normalizations have either, and that is not ADM's 32 at this width.
    """
    narrow = [] if getattr(config.network, "norm_groups", 32) else group_norm.narrow(on_meta(config))
    if narrow:
        raise ConfigError(
            "a file of weights does not say how many groups its normalizations have, and at this width that may be 32, "
            f"as in ADM, or {' and '.join(map(str, narrow))}, as here: set network.norm_groups to 32 or to by_width"
        )
    return int(getattr(config.network, "head_channels", 64))


def initialise(config: Config, net: nn.Module, weights: Weights | None = None) -> None:
    """Give `net` the weights of the run or file that `init` names, if any; what only students take stays as it is,
    adding 0, where they have none. Raises CheckpointError for another architecture.
    """
    if config.init is None:
        return
    url = config.start
    assert url is not None
    weights = weights or Weights()
    run, state = (None, weights.file(url, head_channels(config))) if released.is_file(url) else weights.run(url)
    net.load_state_dict(fitting(config, net, run.config if run else None, state))


def fitting(
    config: Config, net: nn.Module, theirs: Config | None, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The weights `state` that a run starts from, of a run or (None) of a file, as `net` takes them.

    Raises CheckpointError, ConfigError.
    """
    here = configuration.by_key(config)
    there = configuration.by_key(theirs) if theirs else {k: v for k, v in here.items() if k.startswith("network.")}
    for key, usual in UNSEEN.items():
        if (was := there.get(key, usual)) != (now := here.get(key, usual)):
            raise ConfigError(
                f"init: {config.start} was trained with {key} {was}, this run has {now}; they must be equal"
            )
    second = {name: value for name, value in net.state_dict().items() if name.startswith(OF_STUDENTS)}
    fitted = second | dict(state)
    released.check(net, fitted, f"init: {config.start}")
    return fitted
