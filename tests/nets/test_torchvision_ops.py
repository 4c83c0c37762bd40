import os
import subprocess
import sys
from pathlib import Path

from cmdist.nets import torchvision_ops

REPOSITORY = Path(torchvision_ops.__file__).parents[2]


def run(script: str) -> str:
    """The output of a fresh interpreter: torchvision is imported once in a process."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_can_be_imported_and_says_which_operators_are_missing():
    said = run(
        "from cmdist.nets import torchvision_ops as ops\n"
        "declared = [ops.declare_missing() for _ in range(2)]\n"
        "import torch, torchvision\n"
        "image = torchvision.transforms.functional.resize(torch.zeros(1, 3, 8, 8), 16)\n"
        "assert image.shape == (1, 3, 16, 16)\n"
        "boxes, scores = torch.tensor([[0., 0., 1., 1.], [0., 0., 1., 1.]]), torch.tensor([1., 0.5])\n"
        "try: print(declared, torchvision.ops.nms(boxes, scores, 0.5).tolist())\n"
        "except RuntimeError as error: print(declared, type(error).__name__, 'custom C++ ops' in str(error))\n"
    )
    assert said.strip() in (
        "[True, True] RuntimeError True",
        "[False, False] [0]",
    )  # not loadable beside this torch, or native


def test_native_operators_are_left_alone():
    said = run(
        "import torch\n"
        "native = torch.library.Library('torchvision', 'DEF')\n"
        "native.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "from cmdist.nets import torchvision_ops as ops\n"
        "print(ops.declare_missing(), ops._library)\n"
    )
    assert said.strip() == "False None"
