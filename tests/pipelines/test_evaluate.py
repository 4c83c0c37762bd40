"""pipelines/evaluate.py and sample.py on small runs."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmdist import build, models
from cmdist.checkpoints import checkpoint as checkpoints
from cmdist.core.sampling import one_step
from cmdist.data.images import open_dataset
from cmdist.errors import CheckpointError, ConfigError, DataError
from cmdist.evaluation import extractors, generation, measurement, pictures
from cmdist.evaluation.metrics.frechet import Moments, frechet_distance
from cmdist.tracking import mlflow as tracking
from ranks import REPOSITORY, Ranks, pipeline, run_pipeline
from runs import add_checkpoint, call, make_data, make_run

evaluate = pipeline("evaluate")
sample = pipeline("sample")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def run(tmp_path, data) -> Path:
    return make_run(tmp_path, "ct", data)


def records(run: Path) -> dict[str, dict]:
    """By metric and sampler, each with its `value`."""
    found = [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]
    return {name: record | {"value": value} for record in found for name, value in record["metrics"].items()}


def stored(run: Path) -> list[dict]:
    return tracking.runs(f"sqlite:///{run.parent}/mlflow.db", "tests")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data) -> tuple[Path, str]:
    run = make_run(tmp_path_factory.mktemp("evaluated"), "ct", data)
    call(evaluate.main, run, "--n", "300")
    return run


def test_figures_are_those_of_the_images_of_the_seeds(evaluated, data):
    found = records(evaluated)
    assert set(found) == {"fd_1step", "fd_2step"}
    dataset = open_dataset(str(data))
    extractor = extractors.own(dataset, torch.device("cpu"))
    denoise = build.load_denoiser(models.open_run(str(evaluated)), 0.9)
    noise = generation.noises(range(512), 1, (1, 8, 8))[0]
    with torch.inference_mode():
        made = torch.cat(
            [
                one_step(denoise, part, 80.0, torch.arange(s, s + 256) % 10)
                for s, part in ((0, noise[:256]), (256, noise[256:]))
            ]
        )[:300]
    moments, real = Moments(64), Moments(64)
    moments.add(extractor.features(generation.to_uint8(made)))
    real.add(extractor.features(dataset.images(range(300))))
    expected = frechet_distance(moments.statistics(), real.statistics())
    assert found["fd_1step"]["value"] == pytest.approx(expected, rel=1e-5)


def test_protocol_record_is_complete(evaluated, data):
    for metric, record in records(evaluated).items():
        protocol = record["protocol"]
        assert set(protocol) == {
            "space",
            "extractor",
            "reference",
            "resize",
            "definitions",
            "n",
            "seeds",
            "labels",
            "rounding",
            "arithmetic",
        }
        assert protocol["arithmetic"] == "float32 without TF32"
        assert protocol["extractor"] == json.loads((data / "index.json").read_text())["extractor"]["checksum"]
        assert protocol["reference"].startswith("sha256:") and protocol["n"] == 300 and protocol["seeds"] == [0, 299]
        assert (
            protocol["labels"] == "seed modulo 10" and protocol["rounding"] == "floor(127.5 x + 128), clipped to 0..255"
        )
        assert record["protocol_id"] == measurement.digest(protocol)
        assert record["sampling"]["ema"] == 0.9 and record["sampling"]["group"] == 256
        assert record["sampling"]["times"] == ([80.0] if metric == "fd_1step" else [80.0, 0.8])
        commit = json.loads((evaluated / "checkpoints" / "step-0000000010" / "COMMIT").read_text())
        weights = f"xxh3:{commit['files']['ema-0.9.safetensors']['xxh3']}"
        assert record["checkpoint"] == {"url": str(evaluated / "checkpoints" / "step-0000000010"), "weights": weights}
        assert (
            record["step"] == 10
            and record["code"] == measurement.code_version()
            and record["images"].startswith("sha256:")
        )


def test_figures_stand_in_the_run_at_the_checkpoints_step_with_a_child_for_each(evaluated):
    found = records(evaluated)
    (parent,) = [r for r in stored(evaluated) if r["parent"] is None]
    assert parent["key"] == "key-ct" and parent["params"]["objective.kind"] == "consistency_training"
    uri = f"sqlite:///{evaluated.parent}/mlflow.db"
    for metric, record in found.items():
        assert tracking.history(uri, parent["id"], metric) == [(10, record["value"])]
        (child,) = [r for r in stored(evaluated) if r["parent"] == parent["id"] and metric in r["metrics"]]
        assert (
            child["params"]["protocol.reference"] == record["protocol"]["reference"]
            and child["params"]["protocol_id"] == record["protocol_id"]
        )
        assert (
            child["params"]["sampling.ema"] == "0.9"
            and child["params"]["checkpoint.weights"] == record["checkpoint"]["weights"]
        )
    assert len(list((evaluated.parent / "mlartifacts" / parent["id"]).rglob("*.png"))) == 2


def test_grid_has_a_column_for_each_class(evaluated, run, data):
    (png,) = (evaluated / "evaluations").glob("*fd_1step*.png")
    images, columns = pictures.unpack(png.with_suffix(".npz").read_bytes())
    assert columns == 10 and images.shape == (40, 1, 8, 8)
    assert Image.open(png).size == (10 * (8 * 5 + 2) + 2, 4 * (8 * 5 + 2) + 2)
    call(evaluate.main, run, "--n", "300", "--seed", "13", "--steps", "1")  # seeds 20, 21, ... begin a row
    (shifted,) = (run / "evaluations").glob("*.npz")
    assert torch.equal(pictures.unpack(shifted.read_bytes())[0][:20], images[20:40])


def test_second_call_reuses_what_is_there(evaluated, capsys):
    before = {path: path.stat().st_mtime_ns for path in (evaluated / "evaluations").iterdir()}
    call(evaluate.main, evaluated, "--n", "300")
    assert capsys.readouterr().out.count("(made before)") == 2
    assert {path: path.stat().st_mtime_ns for path in (evaluated / "evaluations").iterdir()} == before
    assert len([r for r in stored(evaluated) if r["parent"]]) == 2


def test_records_of_before_the_arithmetic_are_kept_and_not_taken_for_new_ones(run, capsys):
    call(evaluate.main, run, "--n", "300", "--steps", "1")
    (path,) = (run / "evaluations").glob("*.json")
    old = json.loads(path.read_text())
    del old["protocol"]["arithmetic"]
    old["protocol_id"] = measurement.digest(old["protocol"])
    old["measured"] = old["identity"] = "0" * 16
    path.write_text(json.dumps(old))
    older = path.rename(path.with_name("step-0000000010-fd_1step-0000000000000000.json"))
    call(evaluate.main, run, "--n", "300", "--steps", "1")
    assert "(made before)" not in capsys.readouterr().out
    assert json.loads(older.read_text()) == old and len(list((run / "evaluations").glob("*.json"))) == 2


@pytest.mark.parametrize("command", ["evaluate", "reference"])
def test_figures_are_taken_without_tf32(monkeypatch, run, data, command):
    """Torch's default is TF32 in the convolutions of GPUs, and an earlier configuration may have asked for more."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    seen, features = [], extractors.Extractor.features

    def look(extractor, images):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return features(extractor, images)

    monkeypatch.setattr(extractors.Extractor, "features", look)
    arguments = [run, "--n", "300", "--steps", "1"] if command == "evaluate" else ["reference", data, "--n", "300"]
    call(evaluate.main, *arguments)
    assert set(seen) == {(False, False)}


def test_another_checkpoint_average_or_protocol_is_another_figure(run):
    add_checkpoint(run, 20)
    for arguments in (
        ["--checkpoint", "10"],
        [],
        ["--ema", "0.5"],
        ["--n", "256"],
        ["--times", "80", "1.5", "--steps", "2"],
    ):
        call(evaluate.main, run, "--n", "300", "--steps", "1", *arguments)
    found = [json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")]
    assert (
        len(found) == 5
        and len({*map(str, (r["metrics"] for r in found))}) == 5
        and len({r["identity"] for r in found}) == 5
    )
    assert sorted(r["step"] for r in found) == [10, 20, 20, 20, 20]
    assert (
        len({r["protocol_id"] for r in found}) == 2
    )  # n is part of the protocol; average and times are said beside it
    call(evaluate.main, run, "--n", "300", "--steps", "1", "--ema", "0.5", "0.9")  # both are there
    assert len(list((run / "evaluations").glob("*.json"))) == 5


def test_denoising_run_is_measured_with_heun(tmp_path, data):
    run = make_run(tmp_path, "edm", data, objective="denoising")
    call(evaluate.main, run, "--n", "300")
    record = records(run)["fd_ode"]
    grid = {"sampler": "heun", "steps": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    assert record["sampling"] == grid | {"ema": 0.9, "precision": "fp32", "group": 256}


def test_figures_do_not_depend_on_ranks_or_batch(evaluated, tmp_path):
    """Real processes; compared bit for bit with one process."""
    alone = records(evaluated)
    for size, batch in ((1, "256"), (2, "1"), (4, "600")):
        run = tmp_path / f"{size}" / "ct"
        shutil.copytree(evaluated, run, ignore=shutil.ignore_patterns("evaluations"))
        ranks = Ranks(
            size, tmp_path / f"{size}.log", run_pipeline, "evaluate", [str(run), "--n", "300", "--batch", batch]
        )
        assert ranks.join(180) == [0] * size, ranks.text
        found = records(run)
        for metric in ("fd_1step", "fd_2step"):
            assert found[metric]["ranks"] == size
            assert (
                found[metric]["images"] == alone[metric]["images"] and found[metric]["value"] == alone[metric]["value"]
            )


def test_figures_are_kept_when_mlflow_is_away_and_sent_by_the_same_command_later(run, capsys, monkeypatch):
    def away(*arguments, **more):
        raise tracking.TrackingError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "log_evaluation", away)
        call(evaluate.main, run, "--n", "300", "--steps", "1")
    assert "nobody answers; the figures are in" in capsys.readouterr().err
    assert not [r for r in stored(run) if r["parent"]] and records(run)
    call(evaluate.main, run, "--n", "300", "--steps", "1")
    assert [r["metrics"]["fd_1step"] for r in stored(run) if r["parent"]] == [records(run)["fd_1step"]["value"]]


def test_run_may_be_named_from_anywhere(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    call(evaluate.main, "ct", "--n", "300", "--steps", "1")
    (child,) = [r for r in stored(run) if r["parent"]]
    assert child["params"]["stem"].startswith(f"{run}/evaluations/step-0000000010-fd_1step-")
    call(evaluate.main, run / "checkpoints" / "step-0000000010", "--n", "300", "--steps", "1")
    assert len(records(run)) == 1 and len([r for r in stored(run) if r["parent"]]) == 1


def test_evaluation_needs_no_deepspeed():
    script = (
        "import sys; sys.path.insert(0, 'tests'); from ranks import pipeline; "
        "pipeline('evaluate'); sys.exit('deepspeed' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environment).returncode == 0


def test_a_file_of_weights_is_measured_as_the_run_that_it_came_from(evaluated, tmp_path, capsys):
    weights, said = tmp_path / "cd_small.pt", tmp_path / "config.yaml"
    torch.save(models.ema_weights(models.open_run(str(evaluated)), 0.9), weights)
    said.write_text((evaluated / "config.yaml").read_text().replace("norm_groups: null", "norm_groups: by_width"))
    for again in ("", " (made before)"):
        call(
            evaluate.main,
            said,
            "--weights",
            weights,
            "--out",
            tmp_path / "out",
            "--n",
            "300",
            "--steps",
            "1",
        )
        text = capsys.readouterr().out
        assert "cd_small.pt, 300 images, " in text and text.strip().endswith(f"s{again}")
    (record,) = records(tmp_path / "out").values()
    expected = records(evaluated)["fd_1step"]
    assert record["images"] == expected["images"] and record["value"] == expected["value"]
    assert record["protocol_id"] == expected["protocol_id"] and record["sampling"]["ema"] is None
    content = checkpoints.checksum([weights.read_bytes()])
    assert record["checkpoint"] == {"url": str(weights), "weights": f"xxh3:{content}"}
    for arguments in (
        ["--weights", weights],
        ["--out", tmp_path],
        ["--weights", weights, "--out", tmp_path, "--ema", "0.9"],
    ):
        with pytest.raises(
            ConfigError, match="--weights FILE and --out FOLDER go together, and without --ema and --checkpoint"
        ):
            call(evaluate.main, evaluated / "config.yaml", *arguments)


# --- what is refused


@pytest.mark.parametrize(
    "arguments, error, sentence",
    [
        (
            ["--n", "127"],
            DataError,
            "127 images are too few for a Frechet distance in 64 features: at least 128 are needed",
        ),
        (
            ["--metrics", "psnr"],
            ConfigError,
            "--metrics psnr: fd, accuracy, fid, kid, fid_legacy, is, precision, recall, fd_dinov2 are allowed",
        ),
        (
            ["--metrics", "fid"],
            ConfigError,
            "fid needs Inception's weights: --inception FILE or evaluation.inception, from https://nvlabs",
        ),
        (
            ["--metrics", "kid", "--inception", "none.pt"],
            ConfigError,
            "the Inception weights none.pt are not there; no job downloads them",
        ),
        (
            ["--metrics", "fd_dinov2"],
            ConfigError,
            "fd_dinov2 needs --dinov2 FILE or evaluation.dinov2, a file made by torch.jit.trace",
        ),
        (
            ["--reference", "fid=x.npz"],
            ConfigError,
            "--reference fid=x.npz: SPACE=FILE is allowed, with SPACE one of fd",
        ),
        (["--reference", "fd=none.npz"], DataError, "the reference statistics none.npz are not there"),
        (["--n", "0"], ConfigError, "--n must be 1 to "),
        (["--ema", "0.7"], CheckpointError, "has no average with decay 0.7; it has 0.9, 0.5"),
        (["--checkpoint", "7"], CheckpointError, "has no checkpoint of step 7; it has step 10"),
        (["--steps", "heun"], ConfigError, "heun is for denoising runs"),
        (["--steps", "3"], ConfigError, "needs 3 noise levels and there are 2"),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence_and_leaves_nothing(evaluated, tmp_path, arguments, error, sentence):
    run = tmp_path / "ct"
    shutil.copytree(evaluated, run, ignore=shutil.ignore_patterns("evaluations"))
    with pytest.raises(error, match=sentence):
        call(evaluate.main, run, *arguments)
    assert not (run / "evaluations").exists()


def test_images_that_are_not_finite_are_refused(tmp_path, data, monkeypatch):
    run = make_run(tmp_path, "ct", data)
    monkeypatch.setattr(build, "load_denoiser", lambda *a, **k: lambda x, sigma, labels: x * float("nan"))
    with pytest.raises(DataError, match="not finite"):
        call(evaluate.main, run, "--n", "300")
    assert [path.name for path in run.glob("evaluations/*")] == ["step-0000000010.begun"]  # for retention


def test_data_without_or_with_a_damaged_extractor_is_a_sentence(tmp_path):
    bare = open_dataset(str(make_data(tmp_path / "bare", extractor=False)))
    with pytest.raises(
        DataError, match=r"has no feature extractor of its own, so no fd; fid and the others take Inception"
    ):
        extractors.own(bare, torch.device("cpu"))
    folder = make_data(tmp_path / "full")
    dataset = open_dataset(str(folder))
    (folder / "extractor.safetensors").write_bytes(b"something else")
    with pytest.raises(DataError, match="is damaged: its checksum is not that of the index"):
        extractors.own(dataset, torch.device("cpu"))
    (folder / "extractor.safetensors").unlink()
    with pytest.raises(DataError, match=r"extractor.safetensors is missing"):
        extractors.own(dataset, torch.device("cpu"))


# --- references and pictures


def test_references_of_a_data_set(data, capsys):
    call(evaluate.main, "reference", str(data), "--n", "300")
    record = json.loads((data / "references-n300-seed0.json").read_text())
    assert 0 < record["bootstrap"] < record["matched_gaussian"]
    assert f"{record['bootstrap']:.4f}" in capsys.readouterr().out
    first = next(data.glob("statistics-*.npz"))
    before = first.read_bytes()
    call(evaluate.main, "reference", str(data), "--n", "300", "--seed", "1")
    assert first.read_bytes() == before and (data / "references-n300-seed1.json").exists()
    with pytest.raises(DataError, match="too few"):
        call(evaluate.main, "reference", str(data), "--n", "100")


def test_sample_makes_a_picture_of_the_same_images_as_evaluation(evaluated, tmp_path, capsys):
    call(sample.main, evaluated, "--out", str(tmp_path / "s.png"), "--rows", "4", "--steps", "1")
    assert capsys.readouterr().out.strip() == str(tmp_path / "s.png")
    (npz,) = (evaluated / "evaluations").glob("*fd_1step*.npz")
    images, _ = pictures.unpack(npz.read_bytes())
    title = "ct, step 10: one step"
    expected = pictures.png(pictures.side_by_side([(title, images)], 10, [str(c) for c in range(10)]))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "s.png")), np.asarray(Image.open(io.BytesIO(expected))))


def test_sample_refuses_what_cannot_be_one_picture(evaluated, tmp_path):
    with pytest.raises(ConfigError, match=r"--out must end in \.png"):
        call(sample.main, evaluated, "--out", str(tmp_path / "s.jpg"))


def test_a_student_of_an_earlier_stage_is_sampled_with_the_steps_of_its_stage(tmp_path, data):
    """k steps of a student whose stage has another N are refused, in evaluation and in pictures."""
    objective = {"kind": "progressive_distillation", "teacher": "runs/none", "first_steps": 4, "stage_steps": 5}
    run = make_run(tmp_path, "pd", data, objective, step=40, init="teacher")  # 5 steps of N = 4, 10 of 2, 10 of 1
    add_checkpoint(run, 5)
    call(evaluate.main, run, "--checkpoint", 5, "--n", 128)
    call(evaluate.main, run, "--n", 128)
    assert set(records(run)) == {"fd_4step", "fd_1step"}
    with pytest.raises(ConfigError, match=r"--steps 1: this student was trained for 4 and makes no other number"):
        call(evaluate.main, run, "--checkpoint", 5, "--n", 128, "--steps", 1)
    early = run / "checkpoints" / next(p.name for p in (run / "checkpoints").iterdir() if "0005" in p.name)
    with pytest.raises(ConfigError, match=r"--steps 2: this student was trained for 4"):
        call(sample.main, early, "--steps", 2, "--out", tmp_path / "s.png")
    call(sample.main, early, "--out", tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").height > 40
