"""Parts about the device alone: how fast it multiplies and copies, and Inception's features on it."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.first_hour.schedule import Setup, Tell
from benchmarks.train import matmul_flops, timed
from torch import Tensor, nn

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def ceilings(setup: Setup, tell: Tell) -> None:
    """TFLOP/s of square matrix products (fp32 without and with TF32), GB/s of copies."""
    device = torch.device(setup.device)
    for name in ("fp32",) if setup.small else KINDS:
        tell({f"{name} TFLOP/s": matmul_flops(device, KINDS[name]) / 1e12})
    if setup.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        tell({"TF32 TFLOP/s": matmul_flops(device, torch.float32) / 1e12})
    size = 2**24 if setup.small else 2**30  # bytes
    pinned = setup.device == "cuda"
    here, there = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    host = torch.ones(size // 4, pin_memory=pinned)
    ways: dict[str, Callable[[], Tensor]] = {
        "copy on the device": lambda: there.copy_(here),
        "host to device": lambda: there.copy_(host, non_blocking=True),
        "device to host": lambda: host.copy_(here, non_blocking=True),
    }
    if pinned:
        plain = torch.ones(size // 4)
        ways["device to host, not pinned"] = lambda: plain.copy_(here)
    for name, way in ways.items():
        moved = size * (2 if name == "copy on the device" else 1)  # read and written in the same memory
        tell({f"{name} GB/s": moved / timed(lambda way=way: way(), 5, 2, device) / 1e9})  # type: ignore[misc]


def features(setup: Setup, tell: Tell) -> None:
    """Images/s of Inception's features for FID, of images in memory, with random weights."""
    from cmdist.evaluation import extractors

    device = torch.device(setup.device)
    file = str(write_inception(setup.out / "inception-random.pt"))
    files = extractors.Files(file, trusted=[extractors.digest(Path(file).read_bytes())])
    try:
        for space, title in (("fid_legacy", "papers' resizing"), ("fid", "clean-fid's resizing")):
            (extractor,) = extractors.load([space], None, files, device)
            count = extractor.batch if setup.small else 32 * extractor.batch
            images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
            extractor.features(images[: extractor.batch])
            begin = time.perf_counter()
            extractor.features(images)
            tell({f"images/s, {title}": count / (time.perf_counter() - begin)})
            if setup.small:
                break
    finally:
        Path(file).unlink()


def write_inception(path: Path) -> Path:
    """A TorchScript file with the interface of the published one, around torchvision's Inception without weights."""
    from cmdist.nets import torchvision_ops

    torchvision_ops.declare_missing()
    from torchvision.models import inception_v3

    body = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    body.fc = nn.Identity()
    torch.jit.script(_Published(body).eval()).save(str(path))
    return path


class _Published(nn.Module):
    """`layers`, and a forward that resizes first, as clean-fid calls it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.layers = _Features(body)
        self.output = nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        x = nn.functional.interpolate(img, size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128).view(img.shape[0], 2048)
        if return_features:
            return features
        return nn.functional.softmax(self.output(features), dim=1)


class _Features(nn.Module):
    """torchvision's network gives a named tuple in training mode, so its type is narrowed here."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = torch.jit.trace(body.eval(), torch.zeros(1, 3, 299, 299))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return features
