"""What pipelines/recipe.py writes is trained by the commands that it prints: digits, emoji, a folder of oddities."""

import io
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cmdist import config
from cmdist.checkpoints import search
from cmdist.errors import CheckpointError, ConfigError
from ranks import REPOSITORY, pipeline, train
from runs import call, make_data, make_run

prepare_data, recipe = pipeline("prepare_data"), pipeline("recipe")
FEW = ["train.steps=2", "train.checkpoint_every=2", "data.workers=0", "tracking.uri=none", "train.precision=fp32"]


def odd_pictures(folder: Path) -> Path:
    """Of several sizes, modes and formats, one of them transparent, in two classes."""
    draw = np.random.default_rng(0)
    for number, (mode, format_, size) in enumerate(
        [("RGB", "JPEG", (70, 90)), ("L", "PNG", (64, 50)), ("RGBA", "PNG", (48, 48)), ("CMYK", "JPEG", (99, 61))] * 3
    ):
        bands = len(Image.new(mode, (1, 1)).getbands())
        pixels = draw.integers(0, 255, (size[1], size[0], bands), dtype=np.uint8).squeeze()
        content = io.BytesIO()
        Image.frombytes(mode, size, pixels.tobytes()).save(content, format_)
        place = folder / f"class {number % 2}" / f"{number} ä.{format_.lower()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.getvalue())
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data without an extractor."""
    return make_data(tmp_path_factory.mktemp("bare") / "data", extractor=False)


def data_of(kind: str, folder: Path) -> Path:
    out = folder / "data"
    if kind == "digits":
        return make_data(out)
    if kind == "emoji":
        call(prepare_data.main, "font", REPOSITORY / "tests/fixtures/emoji/five.ttf", "--size", 32, "--out", out)
    else:
        source = odd_pictures(folder / "my pictures")
        call(prepare_data.main, "folder", source, "--size", 48, "--out", out, "--workers", 1)
    return out


@pytest.mark.parametrize("kind", ["digits", "emoji", "folder"])
def test_the_commands_that_are_printed_train_a_teacher_and_its_student(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of(kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    call(recipe.main, data, "--gpus", 1, "--memory", 3, "--hours", 0.002, "--peak-tflops", 1)
    said = capsys.readouterr()
    (tmp_path / "mine.yaml").write_text(said.out)
    assert all(len(line) <= 120 for line in said.out.splitlines() if not line.startswith("#"))
    *_, with_sbatch, after, without = said.err.splitlines()
    assert with_sbatch.startswith("teacher=$(sbatch --parsable --nodes=1 ") and "afterok:$teacher" in after
    assert all(f"#   {line}" in said.out for line in (with_sbatch, after, without))
    student = config.load("mine.yaml")
    size = {"digits": 8, "emoji": 32, "folder": 48}[kind]
    assert (student.data.image_size, student.data.classes) == (size, {"digits": 10, "emoji": 0, "folder": 2}[kind])
    few = FEW if kind == "digits" else [*FEW, "train.global_batch=4", "train.micro_batch=4", "train.ema=[0.9]"]
    few += ["train.ema_ramp_up=null"] if kind != "digits" else []
    for name, command in zip(("edm", "cd"), without.split(" && "), strict=True):
        words = shlex.split(command)
        assert words[:4] == ["deepspeed", "--num_gpus", "1", "pipelines/train.py"]
        run = train(1, tmp_path / f"{name}.log", *words[4:], *few)
        assert run.join() == [0], run.text
        assert search.steps(str(tmp_path / "runs/mine" / name)) == [2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--gpus", 0, "--hours", 1), "--gpus 0: a number above 0"),
        (("--gpus", 12, "--hours", 1), "--gpus 12 must be whole nodes of --node-gpus 8, or one node"),
        (("--gpus", 1, "--hours", "nan"), "--hours nan: a number above 0 is needed"),
        (("--gpus", 1, "--hours", "inf"), "--hours inf: a number above 0 is needed"),
        (("--gpus", 1, "--hours", 1, "--mfu", 2), "--mfu 2: a number above 0 and up to 1 is needed"),
        (("--gpus", 1, "--hours", 1, "--mfu", 0), "--mfu 0: a number above 0 and up to 1 is needed"),
        (("--gpus", 1, "--hours", 1, "--gpu", "x"), "--gpu x: a100"),
        (("--gpus", 1, "--hours", 1, "--teacher", "x.pt"), "a run folder or a local file of pipelines/convert.py"),
        (("--gpus", 1, "--hours", 1, "--teacher", "nowhere"), "nowhere is not a run folder"),
    ],
)
def test_bad_options_are_one_sentence(bare: Path, options: tuple[object, ...], sentence: str) -> None:
    with pytest.raises((ConfigError, CheckpointError)) as error:
        call(recipe.main, bare, *options)
    assert sentence in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


def test_a_run_is_a_teacher_if_it_is_a_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path / "data", extractor=False)
    few = ("--gpus", 1, "--memory", 3, "--hours", 0.002, "--peak-tflops", 1)
    edm = make_run(tmp_path / "runs", "edm", data, "denoising")
    call(recipe.main, data, *few, "--teacher", edm)
    student = config.parse(capsys.readouterr().out)
    assert student.teacher == str(edm) and student.network.channel_mult == (1,)
    with pytest.raises(ConfigError, match=r"is no denoiser, its objective is consistency_training; a teacher must be"):
        call(recipe.main, data, *few, "--teacher", make_run(tmp_path / "runs", "ct", data))


@pytest.mark.parametrize(
    "keys",
    [None, "", "[]", "{}", '{"network": {"kind": "adm"}, "data": {}}', '{"network": [], "data": 3}']
    + [f'{{"network": {{"model_channels": {width}}}, "data": {{}}}}' for width in ("0", '"a"', "true", "null")]
    + ['{"network": {"model_channels": 8}, "data": 3}'],
)
def test_a_file_that_does_not_say_what_it_holds_is_one_sentence(bare: Path, tmp_path: Path, keys: str | None) -> None:
    file = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, None if keys is None else {"keys": keys})
    with pytest.raises(CheckpointError, match=r"teacher.safetensors does not say what network it holds") as error:
        call(recipe.main, bare, "--gpus", 1, "--hours", 1, "--teacher", file)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
