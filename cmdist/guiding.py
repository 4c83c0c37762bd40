"""How a model is guided where it is sampled: away from itself without a class or a worse model, or told a scale."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmdist import config as configuration
from cmdist import models, pins, teachers
from cmdist.config import Config
from cmdist.core.guidance import Guidance, auto, classifier_free
from cmdist.core.noise import Denoise
from cmdist.errors import ConfigError
from cmdist.models import Weights
from cmdist.nets import released
from cmdist.system import storage
from cmdist.system.distributed import World


@dataclass(frozen=True)
class Guide:
    """A worse model to guide away from: its denoiser, and the checksum of its weights."""

    denoise: Denoise
    weights: str


def guidance_of(scale: float | None, interval: Sequence[float] | None) -> Guidance:
    """Of the options --guidance and --guidance-interval. Raises ConfigError."""
    if interval is not None and scale is None:
        raise ConfigError("--guidance-interval LOW HIGH says where --guidance holds, and there is none")
    if scale is not None and not -100 <= scale <= 100:
        raise ConfigError(f"--guidance {scale:g}: -100 to 100 is allowed, 1 is none")
    if interval is not None and scale == 1:
        raise ConfigError("--guidance-interval LOW HIGH says where --guidance holds, and --guidance 1 is none")
    low, high = interval or (0.0, math.inf)
    if not 0 <= low < high:
        raise ConfigError(f"--guidance-interval {low:g} {high:g}: 0 <= LOW < HIGH is needed")
    return Guidance(1.0 if scale is None else scale, low, high)


def guide_of(config: Config, url: str | None, world: World) -> Guide | None:
    """The model of the option --guide, of the images of `config`; all ranks must call.
    Raises CheckpointError, ConfigError.
    """
    if url is None:
        return None
    plain = configuration.replaced(config, {"train.compile": False})
    return Guide(
        teachers.denoiser(plain, url, "guide", world.device, Weights(world)), str(pins.described(url, url)["weights"])
    )


def described(config: Config, guidance: Guidance, guide: Guide | None) -> dict[str, object]:
    """For a record of what was sampled."""
    if guide is not None:
        return {"kind": "auto"} | guidance.described | {"weights": guide.weights}
    return {"kind": "told" if config.told_guidance else "classifier-free"} | guidance.described


def guided(
    config: Config, denoise: Callable[..., Tensor], guidance: Guidance, guide: Guide | None = None
) -> Callable[..., Tensor]:
    """`denoise`, guided. Raises ConfigError if it cannot be."""
    _check(config, guidance, guide is not None)
    if guide is not None:
        return auto(denoise, guide.denoise, guidance)
    if config.told_guidance and not guidance.none:
        return lambda x, sigma, *rest: denoise(x, sigma, *rest, guidance=torch.full_like(sigma, guidance.scale))
    return classifier_free(denoise, guidance)


def check(config: Config, guidance: Guidance, guide: str | None) -> None:
    """A model of this configuration can be guided so, by another at `guide`, as far as can be seen without weights.
    Raises CheckpointError, ConfigError.
    """
    _check(config, guidance, guide is not None)
    if guide is None:
        return
    if not released.is_file(guide):
        teachers.check_denoiser(config, models.open_run(guide).config, f"guide {guide}")
    elif not storage.exists(guide):
        raise ConfigError(f"--guide {guide} is not there")


def _check(config: Config, guidance: Guidance, by_another: bool) -> None:
    name, drawn = config.run.name, config.guidance.range
    if by_another:
        if guidance.none:
            raise ConfigError("--guide is what --guidance guides away from: a scale other than 1 is needed")
        if config.kind.makes != "denoiser" or config.second_time:
            raise ConfigError(f"{name} cannot be guided by another model: it is no denoiser")
    elif drawn is not None and not guidance.none:
        if not drawn[0] <= guidance.scale <= drawn[1] or (guidance.low, guidance.high) != (0.0, math.inf):
            raise ConfigError(
                f"{name} was told scales of guidance in {list(drawn)} for all noise levels: --guidance must be one of "
                "them, without an interval"
            )
    elif not guidance.none and not config.guidable:
        raise ConfigError(
            f"{name} cannot be guided: a model can be that takes one noise level and has learnt no class beside "
            "classes (network.null_label, train.label_dropout), or a denoiser by a worse one (--guide)"
        )
