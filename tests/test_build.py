"""What the configuration decides beside the objects whose own tests are elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cmdist import build, config, models, teachers
from cmdist.errors import ConfigError
from cmdist.nets.unet import UNet
from runs import make_data, make_run
from training import CD, files, write_config

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def test_a_teacher_is_computed_as_its_students_run_computes(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", extractor=False)
    teacher = make_run(tmp_path, "teacher", data, objective="denoising")
    assert models.open_run(str(teacher)).config.train.precision == "fp32"
    overrides = [
        *CD,
        f"objective.teacher={teacher}",
        "train.precision=bf16",
        "network.channels_last=true",
        "network.dropout=0.3",
    ]
    student = config.load(write_config(tmp_path, str(data)), overrides)
    made = teachers.teacher(student, build.dataset(student), torch.device("cpu"))
    net = made.net  # type: ignore[union-attr]
    assert isinstance(net, UNet)
    assert (net.precision, net.memory_format, net.dropout, net.training) == ("bf16", torch.channels_last, 0.0, False)


def test_weights_that_were_told_noise_levels_otherwise_are_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", extractor=False)
    begun = make_run(tmp_path, "begun", data, objective="denoising")
    for key, theirs, ours in (("noise.c_noise", "log", "angle"), ("network.double_norm", "False", "True")):
        other = config.load(write_config(tmp_path, str(data)), [f"init={begun}", f"{key}={ours}"])
        says = f"init: .*begun was trained with {key} {theirs}, this run has {ours}; they must be equal"
        with pytest.raises(ConfigError, match=says):
            build.initialise(other, build.network(other))


def test_a_student_with_a_second_noise_level_starts_from_a_denoiser_and_follows_one(tmp_path: Path) -> None:
    """A run as teacher has its own network, a file this run's but for the second noise level."""
    data = make_data(tmp_path / "data", extractor=False)
    teacher = make_run(tmp_path, "teacher", data, objective="denoising")
    weights = models.ema_weights(models.open_run(str(teacher)))
    file = tmp_path / "edm.safetensors"
    safetensors.torch.save_file(weights, file)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    labels = torch.tensor([0, 1])
    for where in (teacher, file):
        told = ["network.norm_groups=by_width"] if where == file else []  # a run knows it
        more = [*CD, *told, f"objective.teacher={where}", "init=teacher"]
        student = config.load(write_config(tmp_path, str(data)), more)
        network = student.network.model_copy(update={"second_time": True})
        student = student.model_copy(update={"network": network})
        net = build.network(student)
        build.initialise(student, net)
        followed = teachers.teacher(student, build.dataset(student), torch.device("cpu"))
        assert followed is not None
        denoised = build.denoiser_of(student, net.eval())(x, sigma, labels, sigma / 2)
        assert torch.equal(denoised, followed(x, sigma, labels))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_runs_resume_bit_for_bit(tmp_path: Path, digits: str, device: str) -> None:
    """On every device there is, by the command itself: with a target, dropout and the engine's own gathering of
    slices.
    """
    path = write_config(tmp_path, digits)
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}

    def train(name: str, steps: int) -> None:
        command = [
            sys.executable,
            "pipelines/train.py",
            path,
            *CD,
            f"run.name={name}",
            f"train.steps={steps}",
            "train.deterministic=true",
        ]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    train("straight", 8)
    train("parts", 4)
    train("parts", 8)
    assert files(tmp_path / "runs" / "parts", 8) == files(tmp_path / "runs" / "straight", 8)


def test_set_arithmetic_asks_for_deterministic_kernels_only_if_told(
    tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    path = write_config(tmp_path, digits)
    try:
        build.set_arithmetic(config.load(path))
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        build.set_arithmetic(config.load(path, ["train.deterministic=true"]))
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.allow_tf32 = False
