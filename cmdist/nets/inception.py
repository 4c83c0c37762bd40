"""Inception and the resizing before it, both clean-fid's own (Parmar et al. 2022). The only door to clean-fid."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cmdist.errors import ConfigError
from cmdist.nets import torchvision_ops

FILE = "inception-2015-12-05.pt"  # clean-fid looks for this name


def resizer(size: int) -> Callable[[Tensor], Tensor]:
    """uint8 images (B, 1 or 3, H, W) -> float32 (B, 3, size, size) in 0..255 by clean-fid's bicubic resizing,
    in threads.
    """
    torchvision_ops.declare_missing()
    from cleanfid.resize import make_resizer  # here, since it imports torchvision

    resize = make_resizer("PIL", False, "bicubic", (size, size))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    threads = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // ranks_here))

    def resize_all(images: Tensor) -> Tensor:
        arrays = list(threads.map(resize, images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    return resize_all


class Inception:
    """The TorchScript network FILE of a folder, which came from `url`:
    uint8 images (B, 1 or 3, H, W) -> features (B, 2048) or class probabilities (B, 1008).

    `clean`: clean-fid's resizing to 299. `legacy_tensorflow`: the images go as they are into the network, which has
    TensorFlow's bilinear resizing inside. Raises ConfigError if the file cannot be used.
    """

    SOURCE = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
    DIMENSIONS = 2048

    def __init__(
        self, folder: Path, url: str, mode: Literal["clean", "legacy_tensorflow"], device: torch.device
    ) -> None:
        torchvision_ops.declare_missing()
        from cleanfid.inception_torchscript import InceptionV3W  # here, since it imports torchvision

        self.hash = f"sha256:{hashlib.sha256((folder / FILE).read_bytes()).hexdigest()}"
        self._device, self._resize = device, resizer(299) if mode == "clean" else None
        # On a CPU core batches of 4 were a seventh faster than of 32 (LOG.md); a GPU wants many.
        self.batch = 4 if device.type == "cpu" else 64
        try:
            net = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow")
            self._net: Any = net.eval().to(device)
        except Exception as error:
            raise ConfigError(f"{url} is not the TorchScript file of {self.SOURCE}: {type(error).__name__}") from error

    def prepare(self, images: Tensor) -> Tensor:
        """float32 (B,3,H,W) in 0..255, resized if that is not the network's own affair."""
        if self._resize is not None:
            return self._resize(images).to(self._device)
        images = images.expand(-1, 3, -1, -1).to(self._device)
        return images.to(
            torch.float32, memory_format=torch.channels_last
        )  # in which convolutions on CPU cores are faster

    def features(self, prepared: Tensor) -> Tensor:
        """The last pooling layer (B, 2048) of what `prepare` gave."""
        return self._net(prepared)  # type: ignore[no-any-return]

    def probabilities(self, prepared: Tensor) -> Tensor:
        """Softmax over the 1008 classes, without the last bias, as the original Inception score has it.
        Only in legacy_tensorflow mode.
        """
        return self._net.base(prepared, no_output_bias=True)  # type: ignore[no-any-return]
