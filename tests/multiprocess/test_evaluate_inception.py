"""pipelines/evaluate.py with Inception's interface around a network that nobody trained (no published weights here),
and kills.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmdist import models
from cmdist.errors import CheckpointError, ConfigError, DataError
from cmdist.evaluation import extractors
from cmdist.nets import torchvision_ops
from cmdist.tracking import mlflow as tracking
from inception import Full, trusting, write
from ranks import Ranks, pipeline, run_pipeline
from runs import call, make_data, make_run

evaluate = pipeline("evaluate")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A finished run on data without an extractor of their own."""
    folder = tmp_path_factory.mktemp("bare")
    return make_run(folder, "ct", make_data(folder / "data", extractor=False))


def records(run: Path) -> dict[str, dict]:
    return {
        name: r
        for path in (run / "evaluations").glob("*.json")
        for r in [json.loads(path.read_text())]
        for name in r["metrics"]
    }


def figures(run: Path) -> dict[str, float]:
    return {name: record["metrics"][name] for name, record in sorted(records(run).items())}


QUICK = ["--n", "200", "--steps", "1", "--metrics", "kid", "is", "precision", "recall"]


@pytest.fixture(scope="module")
def quick(bare, weights) -> Path:
    """Evaluated without a Frechet distance, for which 200 images are too few."""
    call(evaluate.main, bare, *QUICK, *trusting(weights))
    return bare


def copy(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "ct", ignore=shutil.ignore_patterns("evaluations"))
    return folder / "ct"


# --- features


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> str:
    """The whole of Inception with random weights."""
    return write(tmp_path_factory.mktemp("full") / "inception-2015-12-05.pt", Full())


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_features_are_cleanfids_own(mode, full, tmp_path):
    """Through clean-fid's own functions; a grey image is one of three equal channels."""
    torchvision_ops.declare_missing()
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[2] = images[2, :1]
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    net = InceptionV3W(str(Path(full).parent), download=False, resize_inside=mode != "clean").eval()
    theirs = get_files_features(files, net, num_workers=0, batch_size=3, device=CPU, mode=mode, verbose=False)
    extractor = extractors.inception(Path(full).parent, full, "fid" if mode == "clean" else "fid_legacy", CPU)
    ours = extractor.features(images).numpy()
    assert ours.shape == (3, 2048) and np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    assert np.abs(extractor.features(images[2:, :1]).numpy() - theirs[2:]).max() < 1e-5 * np.abs(theirs).max()
    if mode != "clean":
        probabilities = extractor.features_and_probabilities(images)[1]
        assert probabilities.shape == (3, 1008) and torch.allclose(probabilities.sum(1), torch.ones(3))


# --- records


def test_each_space_has_its_record_and_child(quick, weights):
    found = records(quick)
    assert set(found) == {"kid_1step", "is_1step", "precision_1step", "recall_1step"}
    assert found["kid_1step"]["protocol"]["space"] == "fid" and found["kid_1step"]["protocol"]["resize"].startswith(
        "clean"
    )
    legacy = found["is_1step"]
    assert legacy == found["recall_1step"] and legacy["protocol"]["space"] == "fid_legacy"
    assert legacy["protocol"]["definitions"] == "is: 10 splits; precision, recall: 3 neighbours"
    assert (
        legacy["protocol"]["extractor"].startswith("sha256:")
        and legacy["protocol_id"] != found["kid_1step"]["protocol_id"]
    )
    assert not list(quick.glob("evaluations/parts-*"))
    children = [r for r in tracking.runs(f"sqlite:///{quick.parent}/mlflow.db", "tests") if r["parent"]]
    assert sorted(sorted(r["metrics"]) for r in children) == [
        ["is_1step", "precision_1step", "recall_1step"],
        ["kid_1step"],
    ]


def test_another_metric_of_the_same_space_is_added(quick, weights, tmp_path, capsys):
    run = tmp_path / "ct"
    shutil.copytree(quick, run)
    call(evaluate.main, run, "--n", "200", "--steps", "1", "--metrics", "kid", "precision", *trusting(weights))
    assert capsys.readouterr().out.count("(made before)") == 2
    before = figures(run)
    for path in (run / "evaluations").glob("*-is_1step-*"):
        path.unlink()
    call(evaluate.main, run, "--n", "200", "--steps", "1", "--metrics", "recall", *trusting(weights))
    call(evaluate.main, run, *QUICK, *trusting(weights))
    assert figures(run) == before and len(list((run / "evaluations").glob("*.json"))) == 3


@pytest.mark.slow
def test_frechet_distances_of_2048_features(bare, weights, tmp_path, capsys):
    run = copy(bare, tmp_path)
    call(
        evaluate.main,
        run,
        "--n",
        "4096",
        "--steps",
        "1",
        "--metrics",
        "fid_legacy",
        *trusting(weights),
        "--batch",
        "4096",
        *reference(tmp_path),
    )
    assert records(run)["fid_legacy_1step"]["metrics"]["fid_legacy_1step"] > 1
    with pytest.raises(
        DataError, match="4095 images are too few for a Frechet distance in 2048 features: at least 4096 are needed"
    ):
        call(evaluate.main, run, "--n", "4095", "--metrics", "fid_legacy", *trusting(weights))


def reference(folder: Path) -> list[str]:
    draw = np.random.default_rng(0)
    np.savez(folder / "adm.npz", mu=draw.normal(size=2048), sigma=np.diag(draw.uniform(1, 2, 2048)), mu_s=0.0)
    return ["--reference", f"fid_legacy={folder}/adm.npz"]


def test_references_of_shards_and_of_files(bare, weights, tmp_path, capsys):
    """Made once beside the shards and found there; an imported file with images has features, too."""
    data = make_data(tmp_path / "data", 300, extractor=False)
    with pytest.raises(DataError, match=r"data: 300 images are too few for a Frechet distance in 2048 features"):
        call(evaluate.main, "reference", data, "--metrics", "fid", *trusting(weights))
    with pytest.raises(
        DataError, match=r"\d+ images are too few .* at least 4096 are needed"
    ):  # of real ones, before any is made
        call(evaluate.main, bare, "--n", "4096", "--metrics", "fid", *trusting(weights))
    assert not list(bare.glob("evaluations/parts-*"))
    images = np.random.default_rng(1).integers(0, 256, (60, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048), arr_0=images)
    out = tmp_path / "stored.npz"
    call(evaluate.main, "reference", tmp_path / "adm.npz", "--out", out, "--image-size", "8", *trusting(weights))
    assert "features of 60 images" in capsys.readouterr().out
    run = copy(bare, tmp_path)
    named = ["--reference", f"fid_legacy={out}"]
    call(evaluate.main, run, "--n", "100", "--steps", "1", "--metrics", "recall", *trusting(weights), *named)
    assert list(records(run)) == ["recall_1step"]
    with pytest.raises(
        ConfigError, match="--out and --image-size belong to a file that is imported, and it needs both"
    ):
        call(evaluate.main, "reference", tmp_path / "adm.npz", "--out", out)
    with pytest.raises(
        DataError, match=r"precision needs features of real images, and .*adm.npz has mean and covariance alone"
    ):
        call(evaluate.main, run, "--n", "100", "--metrics", "precision", *trusting(weights), *reference(tmp_path))
    with pytest.raises(ConfigError, match=r"stored.npz is not the TorchScript file of https"):
        call(evaluate.main, run, "--n", "100", "--metrics", "kid", *trusting(out))


def test_a_dinov2_file_is_any_torchscript_of_its_interface(bare, tmp_path, capsys):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 16))
    torch.jit.trace(net.eval(), torch.zeros(1, 3, 224, 224)).save(str(tmp_path / "dino.pt"))
    run = copy(bare, tmp_path)
    call(
        evaluate.main,
        run,
        "--n",
        "40",
        "--steps",
        "1",
        "--metrics",
        "fd_dinov2",
        *trusting(tmp_path / "dino.pt", "--dinov2"),
    )
    (record,) = records(run).values()
    assert (
        record["protocol"]["resize"] == "Pillow bicubic to 224, not quantized"
        and record["metrics"]["fd_dinov2_1step"] > 0
    )
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="bad.pt is no TorchScript file that takes images"):
        call(evaluate.main, run, "--n", "40", "--metrics", "fd_dinov2", *trusting(tmp_path / "bad.pt", "--dinov2"))


# --- ranks and kills


def start(size: int, run: Path, log: Path, weights: str) -> Ranks:
    return Ranks(size, log, run_pipeline, "evaluate", [str(run), *QUICK, *trusting(weights)])


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_figures_are_identical_on_more_ranks(size, quick, weights, tmp_path):
    run = copy(quick, tmp_path)
    ranks = start(size, run, tmp_path / "log", weights)
    assert ranks.join(120) == [0] * size, ranks.text
    assert figures(run) == figures(quick)
    assert {r["images"] for r in records(run).values()} == {r["images"] for r in records(quick).values()}


def test_killed_at_any_point_it_goes_on_to_the_same_figures(quick, weights, tmp_path):
    """SIGKILL of one rank at random moments, on one or two ranks by turns, until a call gets through."""
    run, draw, kills = copy(quick, tmp_path), random.Random(0), 0
    many = ["--n", "1000", "--steps", "1", "--metrics", "is"]
    alone = copy(quick, tmp_path / "alone")
    call(evaluate.main, alone, *many, *trusting(weights))
    for attempt in range(5):
        size = 1 + attempt % 2
        ranks = Ranks(
            size, tmp_path / f"{attempt}.log", run_pipeline, "evaluate", [str(run), *many, *trusting(weights)]
        )
        if attempt < 4:
            # counted from the first sign of life, so that kills fall into the work and not before it
            ranks.until(lambda: any((run / "evaluations").glob("parts-*")) or any((run / "evaluations").glob("*.json")))
            time.sleep(draw.uniform(0.0, 0.6))
            os.kill(ranks.processes[-1].pid, signal.SIGKILL)
            kills += any(code != 0 for code in ranks.join(120))
        else:
            assert ranks.join(120) == [0] * size, ranks.text
    assert kills >= 2, "or nothing was tested"
    assert figures(run) == figures(alone)
    assert not list(run.glob("evaluations/parts-*"))


def test_a_checkpoint_that_is_thinned_meanwhile_is_a_sentence(bare, weights, tmp_path, monkeypatch):
    run = copy(bare, tmp_path)
    original = models.open_run

    def opened(*arguments):
        found = original(*arguments)
        for file in Path(found.checkpoint.url).glob("ema-*"):
            file.unlink()
        return found

    monkeypatch.setattr(models, "open_run", opened)
    with pytest.raises(CheckpointError, match=r"ema-0.9.safetensors"):
        call(evaluate.main, run, *QUICK, *trusting(weights))
    assert not (run / "evaluations").exists()
