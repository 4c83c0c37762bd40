"""A stand-in for VGG16's weights: random, in the layout of torchvision's file, without the classifier that LPIPS does
not use.
"""

from pathlib import Path

import torch

CONVOLUTIONS = [  # (number in `features`, channels in, channels out)
    *((0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)),
    *((17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)),
]


def write_vgg(path: Path, seed: int = 0, zipped: bool = True) -> Path:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for number, inputs, outputs in CONVOLUTIONS:
        state[f"features.{number}.weight"] = (
            torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        )
        state[f"features.{number}.bias"] = torch.randn(outputs, generator=generator) * 0.05
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return path
