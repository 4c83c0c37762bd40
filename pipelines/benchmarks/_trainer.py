"""A trainer as pipelines/train.py makes it, with stand-ins for data and weights, so that no network is needed."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from cmdist import build
from cmdist import config as configuration
from cmdist.checkpoints.attempt import Attempt
from cmdist.config import Config
from cmdist.data.decode import RAW
from cmdist.data.preparing import preparation
from cmdist.data.preparing.shards import finish, write_shards
from cmdist.data.preparing.sources.base import Source
from cmdist.nets.lpips import Lpips
from cmdist.nets.undrawn import Undrawn
from cmdist.system.distributed import World
from cmdist.train.assembly import make_trainer
from cmdist.train.trainer import Trainer

STEPS = 4  # whose images are there before they come again


@contextlib.contextmanager
def trainer_of(config: Config, world: World) -> Iterator[Trainer]:
    """A trainer at step 0 whose optimizer step is one micro-batch, with made-up images and random weights, which take
    as long as real ones; its files are gone afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="cmdist-benchmark-") as folder:
        stand_in = stood_in(config, Path(folder), world.device)
        data = build.dataset(stand_in)
        trainer, _, _ = make_trainer(
            stand_in, world, data, None, f"{folder}/run", "benchmark", Attempt(folder, 1, None)
        )
        try:
            yield trainer
        finally:
            trainer.batches.close()


@contextlib.contextmanager
def filled(config: Config, device: torch.device) -> Iterator[Config]:
    """A configuration of a distillation from a made-up teacher all of whose layers have weights."""
    with tempfile.TemporaryDirectory(prefix="cmdist-benchmark-") as folder:
        yield configuration.replaced(stood_in(config, Path(folder), device), {"init": "teacher"})


def stood_in(config: Config, folder: Path, device: torch.device) -> Config:
    """`config` with data, teacher and LPIPS weights of its shape that are written to `folder`."""
    changes: dict[str, Any] = {
        "data.url": _images(config, folder / "data"),
        "data.cache": None,
        "data.cache_gib": None,
        "train.global_batch": config.train.micro_batch,
        "train.self_check": False,
    }
    if config.teacher not in (None, "exact"):
        changes["objective.teacher"] = str(folder / "edm_random.safetensors")
        with Undrawn():
            net = build.network(config).to(device)
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:  # no layer is zero, as some are at the start, which gives others no gradient
                torch.nn.init.kaiming_uniform_(parameter, a=5**0.5)
            else:
                torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        safetensors.torch.save_file(net.state_dict(), folder / "edm_random.safetensors")
    if config.lpips:
        changes["objective.distance.weights"] = _vgg(folder / "vgg16.pth")
    return from_nothing(configuration.replaced(config, changes))


def from_nothing(config: Config) -> Config:
    """`config` from random weights, unless its objective begins as somebody."""
    try:
        return configuration.replaced(config, {"init": None})
    except ValueError:
        return config


def _images(config: Config, folder: Path) -> str:
    d, count = config.data, max(STEPS * config.train.micro_batch, config.data.classes)
    draw = np.random.default_rng(0)
    shape = (d.image_size, d.image_size, d.channels)

    def image(i: int) -> NDArray[np.uint8]:
        return draw.integers(0, 256, shape, np.uint8)

    names = tuple(f"{label:04d}" for label in range(d.classes))
    labels = np.arange(count) % d.classes if d.classes else None
    source = Source("made up", d.image_size, d.channels, "none", count, image, labels, names)
    division = preparation.divide(source, seed=0, per_shard=-(-count // 4), encoding=RAW)
    write_shards(str(folder), source, division)
    finish(str(folder), division)
    return str(folder)


def _vgg(path: Path) -> str:
    with torch.device("meta"):  # shapes alone: the whole VGG16 takes seconds to draw
        network = Lpips("max")
    state = {
        f"features.{name}": torch.randn(value.shape).mul_(0.05)
        for part in network.slices
        for name, value in part.state_dict().items()  # numbered as in torchvision's file
    }
    torch.save(state, path)
    return str(path)
