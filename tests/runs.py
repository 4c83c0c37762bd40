"""Small finished runs without training: a data set with an extractor, and run folders with a committed checkpoint."""

import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xxhash

from cmdist import build, config
from cmdist.checkpoints import checkpoint as checkpoints
from cmdist.data.preparing.shards import write_dataset
from cmdist.data.preparing.sources.base import Source
from cmdist.nets.classifier import Classifier
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.mlflow import Tracker, spool_folder

# of a model that has learnt no class beside classes
GUIDABLE: dict[str, Any] = {
    "network": {"model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "head_channels": 8, "null_label": True},
    "train": {
        "steps": 10,
        "global_batch": 8,
        "micro_batch": 8,
        "precision": "fp32",
        "ema": [0.9],
        "label_dropout": 0.1,
    },
}


def make_data(folder: Path, n: int = 300, extractor: bool = True) -> Path:
    """Ten classes of 8x8 grey images; the extractor is not trained, which no test minds."""
    draw = np.random.default_rng(0)
    images = (
        (draw.normal(size=(n, 8, 8, 1)) * 40 + np.arange(n).reshape(n, 1, 1, 1) % 10 * 10 + 80)
        .clip(0, 255)
        .astype(np.uint8)
    )
    entry = None
    if extractor:
        torch.manual_seed(0)
        content = safetensors.torch.save(Classifier(1, 10).state_dict())
        folder.mkdir(parents=True)
        (folder / "extractor.safetensors").write_bytes(content)
        entry = {
            "file": "extractor.safetensors",
            "checksum": f"xxh3:{xxhash.xxh3_128_hexdigest(content)}",
            "accuracy": 0.1,
        }
    source = Source("small", 8, 1, "none", n, images.__getitem__, np.arange(n) % 10, tuple("0123456789"))
    write_dataset(str(folder), source, extractor=entry)
    return folder


@functools.cache
def _store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tracking.runs(f"sqlite:///{folder}/mlflow.db", "none")
        return Path(folder, "mlflow.db").read_bytes()


def add_store(folder: Path) -> None:
    """MLflow's tables in a new folder, copied: they take MLflow two seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "mlflow.db").exists():
        (folder / "mlflow.db").write_bytes(_store())


def make_run(
    root: Path,
    name: str,
    data: Path,
    objective: str | dict[str, Any] = "consistency_training",
    step: int = 10,
    emas: tuple[float, ...] = (0.9, 0.5),
    **more: object,
) -> Path:
    """A run folder as training leaves it, known to the tracker but with nothing delivered yet."""
    settings = {
        "objective": objective,
        "run": {"root": str(root), "name": name},
        "data": {"url": str(data), "image_size": 8, "channels": 1, "classes": 10},
        "network": {"model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "head_channels": 8},
        "optimizer": {"lr": 0.001},
        "train": {"steps": step, "global_batch": 8, "micro_batch": 8, "precision": "fp32", "ema": list(emas)},
        "sampling": {"ode_steps": 4},
        **more,
    }
    made = config.parse(json.dumps(settings))
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.dump(made))
    add_checkpoint(folder, step)
    add_store(root)
    record = {"id": f"key-{name}", "name": name, "tracking_uri": f"sqlite:///{root}/mlflow.db", "experiment": "tests"}
    (folder / "run.json").write_text(json.dumps(record))
    tracker = Tracker.start(
        record["tracking_uri"],
        "tests",
        name,
        record["id"],
        config.flat(made),
        {"cmdist.run": str(folder)},
        spool_folder(str(folder)),
        courier=False,
    )
    for k in (1, step):
        tracker.log(k, {"loss": 1.0 / k, "wall_seconds": 60.0 * k})
    tracker.close()
    return folder


def add_checkpoint(folder: Path, step: int) -> Path:
    """A committed checkpoint with averages whose weights depend on the run's name, the step and the decay."""
    made = config.parse((folder / "config.yaml").read_text())
    files = {"state.json": json.dumps({"emas": list(made.train.ema)}).encode()}
    for number, decay in enumerate(made.train.ema):
        torch.manual_seed(sum(folder.name.encode()) + 100 * step + number)
        net = build.network(made)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        files[checkpoints.ema_file(decay)] = safetensors.torch.save(net.state_dict())
    place = Path(checkpoints.folder(str(folder), step))
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    entries = {name: {"size": len(content), "xxh3": checkpoints.checksum([content])} for name, content in files.items()}
    (place / "COMMIT").write_text(json.dumps({"format": 1, "step": step, "files": entries}))
    return place


def call(main: Callable[[Sequence[str]], None], *arguments: object) -> None:
    """Call a pipeline in this process, and leave neither a process group nor a launcher's variables behind."""
    before = dict(os.environ)
    try:
        main([str(a) for a in arguments])
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
