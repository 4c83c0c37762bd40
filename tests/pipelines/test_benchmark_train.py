"""The measurement of training steps, on the CPU with a small network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmdist import config
from cmdist.plan import plan

ROOT = Path(__file__).parents[2]
SMALL = """
objective: consistency_distillation
teacher: runs/nowhere
init: teacher
run: {name: small}
data: {url: nowhere, image_size: 16, channels: 3, classes: 10}
network: {norm_groups: by_width, model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1,
  attention_resolutions: [8], head_channels: 32}
loss: {distance: lpips, lpips_weights: nowhere.pth}
curriculum: {kind: constant, n_timesteps: 18, mu: 0.9}
optimizer: {lr: 1.0e-4}
train: {steps: 10, global_batch: 2, micro_batch: 2, precision: fp32}
"""


def benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.yaml").write_text(SMALL)
    command = [sys.executable, "pipelines/benchmark.py", "train", str(folder / "small.yaml"), *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_figures_and_what_they_were_measured_with(tmp_path: Path) -> None:
    """Neither data nor weights are needed; activations that are computed twice count once."""
    done = benchmark(
        tmp_path,
        "network.checkpoint_activations=true",
        "--steps",
        "1",
        "--warm-up",
        "1",
        "--json",
        str(tmp_path / "figures.json"),
    )
    assert done.returncode == 0, done.stderr
    (r,) = json.loads((tmp_path / "figures.json").read_text())
    assert r["images_per_second"] == pytest.approx(2 / r["seconds_per_step"]) and r["mfu"] == pytest.approx(
        r["tflops"] / r["matmul_tflops"]
    )
    assert r["mfu"] > 0 and (r["compile"], r["precision"], r["steps"]) == (False, "fp32", 1)
    assert r["tflops"] * r["seconds_per_step"] == pytest.approx(2 * plan(config.parse(SMALL), 1).flops / 1e12)
    assert r["environment"]["packages"]["deepspeed"] and r["environment"]["commit"]
    (line,) = done.stdout.splitlines()[-1:]
    assert all(
        part in line
        for part in ("on CPU, ", "torch 2", "deepspeed 0", "commit ", "compile off", "images/s", "(matrix product in ")
    )


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--warm-up", "-1"]])
def test_impossible_numbers_are_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    done = benchmark(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (2, "error: --steps must be 1 or more, --warm-up 0 or more\n")


@pytest.mark.slow  # inductor
def test_both_settings_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    done = benchmark(
        tmp_path, "--steps", "1", "--warm-up", "1", "--compile", "both", "--json", str(tmp_path / "figures.json")
    )
    assert done.returncode == 0, done.stderr
    assert [r["compile"] for r in json.loads((tmp_path / "figures.json").read_text())] == [False, True]
    broken = benchmark(tmp_path, "network.head_channels=3", "--compile", "both")
    assert broken.returncode == 1 and broken.stderr.endswith("error: the measurement with --compile no failed\n")
