"""What is damaged: a small data set, a run trained on it and measured, and a configuration."""

from pathlib import Path

from ranks import Ranks, run_pipeline
from runs import make_data

CONFIG = """
format: 3
objective:
  kind: consistency_training
  curriculum: {kind: paper, s0: 2, s1: 20, mu0: 0.9}
run: {root: ROOT/runs, name: small, seed: 0}
data: {url: ROOT/data, image_size: 8, channels: 1, classes: 10, workers: 0, block_shards: 2}
network: {model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8, dropout: 0.1}
noise: {sigma_min: 0.002, sigma_max: 80.0}
optimizer: {kind: radam, lr: 0.001, betas: [0.9, 0.999]}
train: {steps: 4, global_batch: 16, micro_batch: 4, precision: fp32, ema: [0.9, 0.99], checkpoint_every: 2}
sampling: {times: [80.0, 0.8], ode_steps: 4}
evaluation: {references: {}}
tracking: {uri: "sqlite:///ROOT/runs/mlflow.db"}
"""
IMAGES = "128"  # of an evaluation
EVALUATE = ["ROOT/runs/small", "--n", IMAGES, "--steps", "1"]


def make(base: Path) -> None:
    """The folder that every case gets a copy of, at the same place, which its files name."""
    base.mkdir(parents=True)
    make_data(base / "data", n=200)
    (base / "small.yaml").write_text(CONFIG.replace("ROOT", str(base)))
    done(base.parent / "train.log", "train", [str(base / "small.yaml")])
    done(base.parent / "evaluate.log", "evaluate", [each.replace("ROOT", str(base)) for each in EVALUATE])


def done(log: Path, name: str, arguments: list[str]) -> None:
    """A pipeline of which no failure is allowed."""
    ranks = Ranks(1, log, run_pipeline, name, arguments)
    assert ranks.join(300) == [0], ranks.text
