"""Networks with the interface of the published Inception file, with weights that nobody trained."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmdist.evaluation import extractors


class Shell(nn.Module):
    """What clean-fid expects of the TorchScript file: `layers`, and a forward that resizes first and may go on to class
    probabilities.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        x = F.interpolate(img, size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128).view(img.shape[0], 2048)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return F.softmax(logits, dim=1)


class Tiny(nn.Module):
    """The colours of 64 places, mixed into 2048 numbers by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * 64, 2048)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mix(x[:, :, 18::38, 18::38].flatten(1)))


def write(path: Path, layers: nn.Module | None = None) -> str:
    """Save such a file; by default around a tiny network."""
    torch.manual_seed(0)
    shell = Shell(layers or Tiny()).eval()
    with torch.no_grad():
        shell.output.weight.mul_(30)  # or all images would be of all classes alike
    torch.jit.script(shell).save(str(path))
    return str(path)


def trusting(file: Path | str, option: str = "--inception") -> list[str]:
    """Arguments that name such a file and trust it."""
    return [option, str(file), "--trust", extractors.digest(Path(file).read_bytes())]


class Full(nn.Module):
    """torch-fidelity's Inception, from the first convolution to the last pooling, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        from cmdist.nets import torchvision_ops

        torchvision_ops.declare_missing()
        from torch_fidelity import feature_extractor_inceptionv3 as theirs

        blocks = [
            theirs.BasicConv2d(3, 32, kernel_size=3, stride=2),
            theirs.BasicConv2d(32, 32, kernel_size=3),
            theirs.BasicConv2d(32, 64, kernel_size=3, padding=1),
            nn.MaxPool2d(3, 2),
            theirs.BasicConv2d(64, 80, kernel_size=1),
            theirs.BasicConv2d(80, 192, kernel_size=3),
            nn.MaxPool2d(3, 2),
            theirs.InceptionA(192, pool_features=32),
            theirs.InceptionA(256, pool_features=64),
            theirs.InceptionA(288, pool_features=64),
            theirs.InceptionB(288),
            *(theirs.InceptionC(768, channels_7x7=c) for c in (128, 160, 160, 192)),
            theirs.InceptionD(768),
            theirs.InceptionE_1(1280),
            theirs.InceptionE_2(2048),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        self.body = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
