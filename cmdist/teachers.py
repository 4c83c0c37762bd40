"""Those whom a student follows: a teacher, and a helper that never changes; whether a configuration's can be they."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from cmdist import build, models
from cmdist.config import Config
from cmdist.core import preconditioning
from cmdist.core.guidance import Guidance, auto, classifier_free
from cmdist.core.noise import Denoise
from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError
from cmdist.models import Weights
from cmdist.nets import released

Guide = Callable[[Guidance], Denoise]  # a teacher, guided so


def teacher(
    config: Config, data: ShardedImages, device: torch.device, weights: Weights | None = None
) -> Denoise | None:
    """The denoiser that distillation follows, guided by a scale that is fixed. Raises as `guide`."""
    made = guide(config, data, device, weights or Weights())
    return made(config.guidance.fixed) if made else None


def guide(config: Config, data: ShardedImages, device: torch.device, weights: Weights) -> Guide | None:
    """The denoiser that distillation follows, to be guided: a trained run, a file, or the data's closed form; away from
    itself without a class, or from the worse one that the objective names. Raises CheckpointError, ConfigError.

    A file has no configuration of its own: it is a denoiser with EDM's scalings and this run's `network.*`.
    """
    if config.teacher is None:
        return None
    if config.teacher == "exact":
        follows: Denoise = models.exact_teacher(data, device, conditional=bool(config.data.classes))
    else:
        follows = denoiser(config, config.teacher, "teacher", device, weights)
    if config.guide is None:
        return partial(classifier_free, follows)
    return partial(auto, follows, denoiser(config, config.guide, "guide", device, weights))


def denoiser(config: Config, url: str, what: str, device: torch.device, weights: Weights) -> Denoise:
    """The one of a run or a file, which is `what` for a run. Raises CheckpointError, ConfigError."""
    if released.is_file(url):
        released.check_kind(url, denoising=True)
        check_guidable(config, config.null_label)
        state = weights.file(url, build.head_channels(config))
        made = build.ready(config.as_denoiser(), state, f"{what} {url}", device, build.denoiser_of)
    else:
        run, state = weights.run(url)
        check_denoiser(config, run.config, f"{what} {url}")
        made = build.ready(_computed_as(config, run.config), state, run.checkpoint.url, device)
    return _teacher(config, made)


def _computed_as(config: Config, theirs: Config) -> Config:
    """A configuration whose network computes as this run does: a file's does, and the plan counts on it."""
    how = {"precision": config.train.precision}, {"channels_last": getattr(config.network, "channels_last", False)}
    return theirs.model_copy(
        update={"train": theirs.train.model_copy(update=how[0]), "network": theirs.network.model_copy(update=how[1])}
    )


def check_denoiser(config: Config, theirs: Config, name: str) -> None:
    """A run of the configuration `theirs` can be the teacher, or its guide, called `name`. Raises ConfigError."""
    if theirs.kind.makes != "denoiser":
        raise ConfigError(
            f"{name} is no denoiser, its objective is {theirs.kind_name}; a {name.partition(' ')[0]} must be one"
        )
    _check_images(name, config, theirs)
    check_guidable(config, theirs.guidable)


def check_guidable(config: Config, guidable: bool) -> None:
    """A teacher that can be asked without a class or not is, if it is to be. Raises ConfigError."""
    if config.guide is None and not config.guidance.none and not guidable:
        scale = list(config.guidance.range) if config.guidance.range else f"{config.guidance.scale:g}"
        raise ConfigError(
            f"objective.guidance {scale} asks teacher {config.teacher} without a class, which it has "
            "not learnt: it must be trained with network.null_label and train.label_dropout"
        )


def check_helper(config: Config, theirs: Config) -> None:
    """A run of the configuration `theirs` can be what the objective keeps frozen. Raises ConfigError."""
    name, needed = f"objective.{config.kind.frozen} {config.frozen}", config.kind.frozen_makes
    if needed is not None and theirs.kind.makes != needed:
        raise ConfigError(f"{name} is no {needed} model, its objective is {theirs.kind_name}; it must be one")
    _check_images(name, config, theirs)


def _check_images(name: str, config: Config, theirs: Config) -> None:
    for key in ("image_size", "channels", "classes"):
        there, here = getattr(theirs.data, key), getattr(config.data, key)
        if there != here:
            raise ConfigError(f"{name} has data.{key} {there}, this run has {here}; they must be equal")


def _teacher(config: Config, model: preconditioning.Model) -> Denoise:
    assert isinstance(model.net, nn.Module)
    if not config.kind.teacher_is_student:  # else these are where a state in fp32 begins
        build.lower(model.net)
    build.compiled(config, model.net)
    return model


def frozen(config: Config, device: torch.device, weights: Weights | None = None) -> Denoise | None:
    """The objective's helper that never changes, of a run. Raises CheckpointError, ConfigError."""
    if config.frozen is None:
        return None
    run, state = (weights or Weights()).run(config.frozen)
    check_helper(config, run.config)
    theirs = _computed_as(config, run.config)
    if config.kind.frozen_dropout:
        theirs = theirs.model_copy(update={"network": theirs.network.model_copy(update={"dropout": config.dropout})})
    model = build.ready(theirs, state, run.checkpoint.url, device)
    assert isinstance(model.net, nn.Module)
    model.net.train(config.kind.frozen_dropout)
    build.lower(model.net)
    build.compiled(config, model.net)
    return model
