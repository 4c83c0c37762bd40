"""A small run for each kind of objective, made of what configs/digits has of it: a new row of the table is tested by
the whole machine as soon as it has a file there.
"""

from pathlib import Path
from typing import Any

import yaml

from cmdist.kinds.objectives import OBJECTIVES
from ranks import REPOSITORY

STEPS, BOUNDARY = 4, 2  # of a run, and the step of its checkpoint half-way, where stages change
CONFIGS = REPOSITORY / "configs/digits"
SMALL = [
    "data.block_shards=2",
    "data.workers=0",
    "network.model_channels=8",
    "network.channel_mult=[1]",
    "network.head_channels=8",
    "network.dropout=0.1",
    "optimizer.decay_fraction=0",
    f"train.steps={STEPS}",
    "train.global_batch=16",
    "train.micro_batch=4",
    "train.ema=[0.9]",
    f"train.checkpoint_every={BOUNDARY}",
    "train.keep_checkpoints=0",
    f"train.log_every={BOUNDARY}",
    "train.glance_every=0",
    "train.glance_images=128",
    "sampling.ode_steps=3",
    "tracking.uri=none",
]
SCALED = {"stage_steps": BOUNDARY, "total_steps": STEPS, "first_steps": 4}  # so that stages change within the run


def _names(tree: dict[str, Any]) -> dict[str, str]:
    """The runs that a configuration names, by key."""
    named = {f"objective.{key}": value for key, value in tree["objective"].items()} | {"init": tree.get("init")}
    return {
        key: value.rpartition("/")[2]
        for key, value in named.items()
        if isinstance(value, str) and value.startswith("runs/digits/")
    }


def _files() -> dict[str, dict[str, Any]]:
    """By name, the first file of each kind and what it needs, in the order of need."""
    trees = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
    made: dict[str, dict[str, Any]] = {}

    def add(name: str) -> None:
        for other in _names(trees[name]).values():
            add(other)
        made[name] = trees[name]

    for kind in OBJECTIVES:
        names = [name for name, tree in trees.items() if tree["objective"]["kind"] == kind]
        assert names, f"objective.kind {kind} needs a file in configs/digits"
        add(names[0])
    return made


FILES = _files()


def arguments(name: str, root: Path, data: str, others: Path | None = None) -> list[str]:
    """Of pipelines/train.py: a run below `root`, on `data`, by the runs of `others` (default: `root`)."""
    tree = FILES[name]
    places = [f"{key}={others or root}/{other}" for key, other in _names(tree).items()]
    lengths = {key: SCALED.get(key.rpartition(".")[2]) for key in _keys(tree["objective"])}
    scaled = [f"{key}={value}" for key, value in lengths.items() if value is not None]
    return [str(CONFIGS / f"{name}.yaml"), f"run.root={root}", f"data.url={data}", *SMALL, *scaled, *places]


def _keys(objective: dict[str, Any], prefix: str = "objective") -> list[str]:
    return [
        key
        for name, value in objective.items()
        for key in (_keys(value, f"{prefix}.{name}") if isinstance(value, dict) else [f"{prefix}.{name}"])
    ]
