"""What a run was made with: the code's commit, package versions, devices."""

import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import torch

import cmdist
from cmdist.system.distributed import World

PACKAGES = (
    "torch",
    "torchvision",
    "deepspeed",
    "webdataset",
    "clean-fid",
    "lpips",
    "mlflow",
    "numpy",
    "safetensors",
    "fsspec",
    "s3fs",
)


def git_commit() -> str:
    """The full commit of the checkout that this runs from, with '-dirty' if files are changed; '' if it is none."""
    describe = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe(world: World) -> dict[str, Any]:
    """Everything that may matter to whoever repeats the run; as rank 0 sees it."""
    facts = {}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cuda = world.device.type == "cuda"
    return {
        "cmdist": cmdist.__version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        "packages": facts,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "ranks": world.size,
        "device": torch.cuda.get_device_name(world.device) if cuda else f"CPU, {os.cpu_count()} cores",
        "devices of the node": torch.cuda.device_count() if cuda else 0,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version() if cuda else None,
        "threads": torch.get_num_threads(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }
