"""Those whom a student follows: a teacher, and a helper that never changes; whether a configuration's can be they."""

import torch
from torch import nn

from cmdist import build, models
from cmdist.config import Config
from cmdist.core import preconditioning
from cmdist.core.guidance import classifier_free
from cmdist.core.noise import Denoise
from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError
from cmdist.models import Weights
from cmdist.nets import released


def teacher(
    config: Config, data: ShardedImages, device: torch.device, weights: Weights | None = None
) -> Denoise | None:
    """The denoiser that distillation follows: a trained run, a file, or the data's closed form.
    Raises CheckpointError, ConfigError.

    It is guided as `objective.guidance` says. A file has no configuration of its own: it is a denoiser with EDM's
    scalings and this run's `network.*`.
    """
    if config.teacher is None:
        return None
    return classifier_free(_unguided(config, config.teacher, data, device, weights or Weights()), config.guidance)


def _unguided(config: Config, url: str, data: ShardedImages, device: torch.device, weights: Weights) -> Denoise:
    if url == "exact":
        return models.exact_teacher(data, device, conditional=bool(config.data.classes))
    if released.is_file(url):
        released.check_kind(url, denoising=True)
        check_guidable(config, config.null_label)
        state = weights.file(url, build.head_channels(config))
        return _teacher(
            config,
            build.ready(config.as_denoiser(), state, f"teacher {url}", device, build.denoiser_of),
        )
    run, state = weights.run(url)
    check_teacher(config, run.config)
    return _teacher(config, build.ready(_computed_as(config, run.config), state, run.checkpoint.url, device))


def _computed_as(config: Config, theirs: Config) -> Config:
    """A configuration whose network computes as this run does: a file's does, and the plan counts on it."""
    how = {"precision": config.train.precision}, {"channels_last": getattr(config.network, "channels_last", False)}
    return theirs.model_copy(
        update={"train": theirs.train.model_copy(update=how[0]), "network": theirs.network.model_copy(update=how[1])}
    )


def check_teacher(config: Config, theirs: Config) -> None:
    """A run of the configuration `theirs` can be the teacher. Raises ConfigError."""
    if theirs.kind.makes != "denoiser":
        raise ConfigError(
            f"teacher {config.teacher} is no denoiser, its objective is {theirs.kind_name}; a teacher must be one"
        )
    _check_images(f"teacher {config.teacher}", config, theirs)
    check_guidable(config, theirs.guidable)


def check_guidable(config: Config, guidable: bool) -> None:
    """A teacher that can be guided or not is, if it is to be. Raises ConfigError."""
    if not config.guidance.none and not guidable:
        raise ConfigError(
            f"objective.guidance {config.guidance.scale:g} asks teacher {config.teacher} without a class, which it has "
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
