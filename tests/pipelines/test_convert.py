"""From a file in EDM's published layout to samples, a figure, a teacher and an export."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import xxhash
import yaml
from PIL import Image

from cmdist import build, config, teachers
from cmdist.checkpoints import search
from cmdist.data.preparing.shards import write_dataset
from cmdist.data.preparing.sources.base import Source
from cmdist.errors import CheckpointError, ConfigError
from cmdist.nets.classifier import Classifier
from cmdist.train import beforehand
from nets.persistence import file, weights
from ranks import REPOSITORY, pipeline, train
from runs import call

convert, sample, export, evaluate = (pipeline(name) for name in ("convert", "sample", "export", "evaluate"))
TINY = {kind: np.load(REPOSITORY / f"tests/nets/edm_{kind}_tiny.npz") for kind in ("adm", "ddpmpp")}
CLASS = {"adm": "DhariwalUNet", "ddpmpp": "SongUNet"}


@pytest.mark.parametrize("kind", ["adm", "ddpmpp"])
def test_a_published_file_is_sampled_measured_followed_and_exported(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, made = TINY[kind], tmp_path / "edm.safetensors"
    content = file(CLASS[kind], weights(archive))
    (tmp_path / "edm.pkl").write_bytes(content)
    call(convert.main, tmp_path / "edm.pkl", "--out", made)
    printed = capsys.readouterr().out
    keys = yaml.safe_load(printed.rpartition(str(made))[0])
    with safetensors.safe_open(str(made), "pt") as opened:
        header = opened.metadata()
    assert header["source_sha256"] == hashlib.sha256(content).hexdigest() and header["source"] == "edm.pkl"
    assert json.loads(header["keys"]) == keys and header["preconditioning"] == "edm"

    data, classes = tmp_path / "data", keys["data"]["classes"]
    images = np.random.default_rng(0).integers(0, 255, (150, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(150) % classes if classes else None
    names = tuple(map(str, range(classes)))
    data.mkdir()
    torch.manual_seed(0)
    extractor = safetensors.torch.save(Classifier(3, max(classes, 2)).state_dict())
    (data / "extractor.safetensors").write_bytes(extractor)
    checksum = f"xxh3:{xxhash.xxh3_128_hexdigest(extractor)}"
    entry = {"file": "extractor.safetensors", "checksum": checksum, "accuracy": 0.1}
    source = Source("small", 16, 3, "none", 150, images.__getitem__, labels, names)
    write_dataset(str(data), source, extractor=entry)
    denoiser = {
        **keys,
        "objective": {"kind": "denoising"},
        "run": {"root": str(tmp_path / "runs"), "name": "edm"},
        "data": {**keys["data"], "url": str(data)},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 2, "global_batch": 8, "micro_batch": 4, "precision": "fp32"},
        "sampling": {"ode_steps": 3},
        "tracking": {"uri": "none"},
    }
    (tmp_path / "edm.yaml").write_text(yaml.safe_dump(denoiser))
    pictures = "--steps", "heun", "--seeds", 1, 2, "--out", tmp_path / "s.png"
    call(sample.main, tmp_path / "edm.yaml", "--weights", made, *pictures)
    assert Image.open(tmp_path / "s.png").width > 16

    how = "--weights", made, "--n", 130, "--steps", "heun", "--metrics", "fd"
    call(evaluate.main, tmp_path / "edm.yaml", *how, "--out", tmp_path / "figures")
    assert "fd_ode" in capsys.readouterr().out

    student = denoiser | {"objective": {"kind": "consistency_distillation", "teacher": str(made)}, "init": "teacher"}
    followed = config.parse(yaml.safe_dump(student))
    beforehand.check_weights(followed, str(tmp_path / "runs/cd"), "auto")
    (tmp_path / "cd.yaml").write_text(yaml.safe_dump(student | {"run": {**student["run"], "name": "cd"}}))
    training = train(1, tmp_path / "cd.log", str(tmp_path / "cd.yaml"))
    assert training.join() == [0], training.text
    assert search.steps(str(tmp_path / "runs/cd")) == [2]
    teacher = teachers.teacher(followed, build.dataset(followed), torch.device("cpu"))
    assert teacher is not None
    x, sigma = torch.from_numpy(archive["x"]), torch.from_numpy(archive["sigma"])
    with torch.inference_mode():
        denoised = teacher(x, sigma, torch.from_numpy(archive["labels"]) if classes else None)
    torch.testing.assert_close(denoised, torch.from_numpy(archive["denoised"]), atol=1e-5, rtol=1e-5)

    out = tmp_path / "exported"
    call(export.main, tmp_path / "edm.yaml", "--weights", made, "--format", "safetensors", "--out", out)
    ours = safetensors.torch.load_file(made)
    theirs = safetensors.torch.load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_cannot_be_converted_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    good = file("DhariwalUNet", weights(TINY["adm"]))
    for name in ("edm.pkl", "baseline-cifar10-32x32-uncond-vp.pkl"):
        (tmp_path / name).write_bytes(good)
    (tmp_path / "half.pkl").write_bytes(good[: len(good) // 2])
    (tmp_path / "there.safetensors").write_bytes(b"")
    (tmp_path / "other.pkl").write_bytes(file("VGG", {}))
    before = sorted(tmp_path.iterdir())
    for source, out, error, sentence in [
        ("edm.pkl", "x.pt", ConfigError, "must end in .safetensors"),
        ("edm.pkl", "there.safetensors", ConfigError, "is there already"),
        ("baseline-cifar10-32x32-uncond-vp.pkl", "x.safetensors", CheckpointError, "other scalings than EDM's"),
        ("half.pkl", "x.safetensors", CheckpointError, "nothing of it was run"),
        ("other.pkl", "x.safetensors", CheckpointError, "holds VGG where SongUNet or DhariwalUNet is read"),
        ("none.pkl", "x.safetensors", CheckpointError, "there is no file"),
    ]:
        with pytest.raises(error) as found:
            call(convert.main, tmp_path / source, "--out", tmp_path / out)
        assert sentence in str(found.value) and "\n" not in str(found.value) and found.value.exit_code == 2
        assert sorted(tmp_path.iterdir()) == before
