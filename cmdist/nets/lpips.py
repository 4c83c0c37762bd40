"""LPIPS (Zhang et al. 2018) with VGG16 features, as a network for `core.distances.lpips`. The only door to lpips.

The package brings the calibrated heads; VGG's own weights are a file of the user's, since a training job downloads
nothing.
"""

import hashlib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cmdist.errors import ConfigError
from cmdist.nets import torchvision_ops
from cmdist.nets.undrawn import Undrawn
from cmdist.system import sharing
from cmdist.system.distributed import World

Pooling = Literal["avg", "max"]
Precision = Literal["fp32", "bf16"]
SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
_EPSILON = 1e-10  # the package's own


class Lpips(nn.Module):
    """(x, y) in [-1, 1], (B, 1 or 3, H, W) -> (B,) distances; frozen, in evaluation mode.

    `pooling`: the paper's ImageNet and LSUN runs averaged where VGG takes the maximum; its CIFAR-10 runs did not.
    `precision`: of VGG's convolutions, in bf16 with their channels last in memory; what follows them is fp32.
    """

    def __init__(self, pooling: Pooling, precision: Precision = "fp32") -> None:
        super().__init__()
        torchvision_ops.declare_missing()
        import lpips  # here, since it imports torchvision

        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
        ):  # its random start moves nobody else's random numbers
            warnings.simplefilter("ignore")  # of torchvision, about the package's way to ask for no weights
            package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        self.scaling = package.scaling_layer
        self.slices = nn.ModuleList(getattr(package.net, f"slice{i}") for i in range(1, 6))
        self.heads = nn.ModuleList(
            lin.model[-1] for lin in package.lins
        )  # 1x1 convolutions; the dropout before them is for training
        if pooling == "avg":
            for part in self.slices:
                for name, layer in list(part.named_children()):
                    if isinstance(layer, nn.MaxPool2d):
                        setattr(part, name, nn.AvgPool2d(2, 2))
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        if precision == "bf16":
            self.slices.to(self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) twice -> (B,); gradient to whichever asks for it."""
        parts = [
            head((a - b).square()).mean(dim=(1, 2, 3))
            for head, a, b in zip(self.heads, self._features(x), self._features(y), strict=True)
        ]
        return torch.stack(parts).sum(0)

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of x (B, 1 or 3, H, W), weighted so that the squared length of their difference is the distance."""
        return [
            features * cast(Tensor, head.weight).clamp_min(0).sqrt().view(1, -1, 1, 1) / features[0, 0].numel() ** 0.5
            for head, features in zip(self.heads, self._features(x), strict=True)
        ]

    def _features(self, x: Tensor) -> Sequence[Tensor]:
        h, features = self.scaling(x.expand(-1, 3, -1, -1)), []
        if self._dtype != torch.float32:
            h = h.to(self._dtype, memory_format=torch.channels_last)
        for part in self.slices:
            h = part(h)
            wide = h.float()  # differences of like images are below bf16's digits
            # The package divides by sqrt(sum) + epsilon, whose gradient is NaN where all features are 0: constant
            # images have such places.
            features.append(wide / (wide.square().sum(1, keepdim=True).clamp_min(_EPSILON**2).sqrt() + _EPSILON))
        return features


def load_lpips(
    weights: str | Path,
    pooling: Pooling,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    world: World | None = None,
) -> Lpips:
    """LPIPS with VGG16's weights from a file in torchvision's layout, which one rank of a `world` reads for all.

    Raises ConfigError if it is missing or another file.
    """
    with Undrawn():
        network = Lpips(pooling, precision)
    state = sharing.tensors_once(world or World(), lambda: _read(weights, network))
    for name, own in _convolutions(network).items():
        own.data.copy_(state[name])
    return network.to(device)


def _convolutions(network: Lpips) -> dict[str, nn.Parameter]:
    """VGG's parameters by their names in torchvision's file."""
    return {
        f"features.{number}.{name}": own
        for part in network.slices
        for number, layer in part.named_children()  # numbers are those of torchvision's `features`
        if isinstance(layer, nn.Conv2d)
        for name, own in layer.named_parameters()
    }


def _read(weights: str | Path, network: Lpips) -> dict[str, Tensor]:
    """Of the file, what `network` needs."""
    path = _existing(weights)
    try:
        # torchvision's file is from before torch wrote zip files, which alone can be mapped
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises several kinds for files that are no tensors
        raise ConfigError(
            f"objective.distance.weights: {path} holds no plain tensors; {SOURCE} is what is needed"
        ) from error
    state = state if isinstance(state, Mapping) else {}
    needed = {}
    for name, own in _convolutions(network).items():
        if not isinstance(value := state.get(name), Tensor) or value.shape != own.shape:
            raise ConfigError(
                f"objective.distance.weights: {path} has no {name} of shape {list(own.shape)}; "
                f"{SOURCE} is what is needed"
            )
        needed[name] = value
    return needed


def check(weights: str | Path) -> None:
    """The file is there and holds what is needed; its numbers are not read. Raises ConfigError."""
    with torch.device("meta"):
        network = Lpips("max", "fp32")
    _read(weights, network)


def fingerprint(weights: str | Path) -> str:
    """'sha256:...' of the weights file: with another one, a run is another run. Raises ConfigError if it is missing."""
    with open(_existing(weights), "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _existing(weights: str | Path) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise ConfigError(
            f"objective.distance.weights: there is no file {path}; get VGG16's weights from {SOURCE} and name that file"
        )
    return path
