"""Small digits runs for the tests, and how to compare what they leave."""

from pathlib import Path
from typing import Any

import torch

from cmdist.checkpoints import search

SMALL = """
objective: denoising
run: {name: small}
data: {url: none, image_size: 8, channels: 1, classes: 10, workers: 0, block_shards: 2}
network: {model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8, dropout: 0.1}
optimizer: {kind: radam, lr: 1.0e-3}
train: {steps: 20, global_batch: 16, micro_batch: 4, precision: fp32, ema: [0.9, 0.99], log_every: 5,
        checkpoint_every: 10, keep_checkpoints: 0}
tracking: {uri: none}
"""
CT = [
    "objective.kind=consistency_training",
    "objective.curriculum.kind=paper",
    "objective.curriculum.s0=2",
    "objective.curriculum.s1=20",
    "objective.curriculum.mu0=0.9",
]
CD = [
    "objective.kind=consistency_distillation",
    "objective.teacher=exact",
    "objective.curriculum.kind=constant",
    "objective.curriculum.n_timesteps=8",
    "objective.curriculum.mu=0.5",
    "objective.distance.kind=pseudo_huber",
]
OBJECTIVES = {"denoising": [], "cd": CD, "ct": CT}


def write_config(folder: Path, data: str, text: str = SMALL) -> str:
    path = folder / "small.yaml"
    path.write_text(
        text.replace("url: none", f"url: {data}").replace(
            "run: {name: small}", f"run: {{name: small, root: {folder}/runs}}"
        )
    )
    return str(path)


def files(run: Path | str, step: int) -> dict[str, Any]:
    """Size and checksum of every file of a checkpoint that holds numbers of the model."""
    return {
        name: entry
        for name, entry in search.open_checkpoint(str(run), step).commit["files"].items()
        if name != "state.json"
    }


def vectors(run: Path | str, step: int) -> dict[str, torch.Tensor]:
    """The whole of every vector of a checkpoint, whatever the number of ranks that wrote it."""
    found = search.open_checkpoint(str(run), step)
    kinds = ["master", "exp_avg", "exp_avg_sq", *(name for name in ("target", "teacher") if found.has(name))]
    total = found.layout.total
    return {kind: found.read_state(kind, 0, total) for kind in kinds} | {
        f"ema {d}": found.read_ema(d, 0, total) for d in found.emas
    }


def committed(run: Path | str, step: int) -> bool:
    return step in search.steps(str(run))
