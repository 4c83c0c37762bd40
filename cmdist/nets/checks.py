"""Sentences about what a denoiser's network cannot be built as, and what it cannot be given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmdist.errors import ConfigError, DataError


def check_levels(size: int, channel_mult: Sequence[int], attention: Sequence[int]) -> list[int]:
    """The sizes of the levels of a U-Net for images of `size`, the largest first. Raises ConfigError for a size that
    cannot be halved so often, or attention where there is no level.
    """
    factor = 2 ** (len(channel_mult) - 1)
    if size % factor:
        raise ConfigError(
            f"image_size {size} must be divisible by {factor}, for channel_mult has {len(channel_mult)} levels"
        )
    sizes = [size // 2**level for level in range(len(channel_mult))]
    if unknown := sorted(set(attention) - set(sizes)):
        raise ConfigError(f"attention_resolutions {unknown} do not occur in this network; allowed, in pixels: {sizes}")
    return sizes


def check_inputs(
    shape: tuple[int, int, int],
    classes: int | None,
    null_label: bool,
    second_time: bool,
    x: Tensor,
    labels: Tensor | None,
    c_noise_next: Tensor | None,
) -> None:
    """Raise DataError for images that are not of `shape`, labels that are not of `classes` (None: there are none; -1 is
    one too with `null_label`), or a second noise level where none is taken, and the other way round.
    """
    if tuple(x.shape[1:]) != shape:
        raise DataError(
            f"images of shape {tuple(x.shape[1:])} were given to a network for {shape} (channels, height, width)"
        )
    if second_time != (c_noise_next is not None):
        raise DataError(
            "a second noise level is missing: this network has second_time"
            if second_time
            else "a second noise level was given to a network without second_time"
        )
    if classes and labels is None:
        raise DataError(f"labels are missing: this network is conditional on {classes} classes")
    if labels is None:
        return
    if not classes:
        raise DataError("labels were given to a network without classes; give None, or build it with num_classes")
    # Looking at labels on a GPU would make the host wait for it at every pass; the reader has checked those on the
    # host. While a compiler traces there is nothing to look at.
    if torch.compiler.is_compiling():
        return
    if (
        labels.device.type == "cpu"
        and labels.numel()
        and not -null_label <= int(labels.min()) <= int(labels.max()) < classes
    ):
        raise DataError(
            f"labels lie in {int(labels.min())}..{int(labels.max())}, but this network knows 0..{classes - 1}"
        )


def check_guidance(told: bool, guidance: Tensor | None) -> None:
    """Raise DataError for a scale of guidance that is given to a network which is not told of it."""
    if guidance is not None and not told:
        raise DataError("a scale of guidance was given to a network without told_guidance")
