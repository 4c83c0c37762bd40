"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

The registry's torchvision wheel is built for CUDA. On a CPU-only torch its library does not load and `import
torchvision` fails because two operators have no schema. Nothing here is used by our code; clean-fid and lpips import
torchvision.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the schemas live as long as this object


def declare_missing() -> bool:
    """Declare the schemas that torchvision needs if its native operators cannot be loaded; True if that was necessary.

    To be called before torchvision, clean-fid or lpips is imported; further calls do nothing.
    """
    global _library
    if _library is None and not _native():
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            _library.define(schema)
    return _library is not None


def _native() -> bool:
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("_C.*")):
            try:
                torch.ops.load_library(str(library))
            except OSError:
                continue
            return hasattr(torch.ops.torchvision, "nms")
    return False
