"""How extractors and figures compute, on every device; models have their own precision."""

import torch

ARITHMETIC = "float32 without TF32"


def set_arithmetic() -> None:
    """Make ARITHMETIC true of this process, so that a GPU's figures are those of a CPU to rounding: torch's default is
    TF32, ten bits, in the convolutions of GPUs.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
