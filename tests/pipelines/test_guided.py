"""Classifier-free guidance from the label dropout of training to what sampling and evaluation record."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmdist import build, quality
from cmdist.core.guidance import NULL
from cmdist.data.images import open_dataset
from cmdist.data.reader import MicroBatch
from cmdist.errors import ConfigError
from cmdist.evaluation import extractors, generation
from cmdist.train.trainer import labels_of
from ranks import pipeline
from runs import GUIDABLE, call, make_data, make_run

NETWORK = {key: value for key, value in GUIDABLE["network"].items() if key != "null_label"}
NAMED = (("edm", 10), ("worse", 3))
evaluate, sample, edit = pipeline("evaluate"), pipeline("sample"), pipeline("edit")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder, "edm", make_data(folder / "data"), "denoising", **GUIDABLE)


def figures(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]


def test_each_scale_is_another_protocol_and_one_is_none(run: Path) -> None:
    call(evaluate.main, run, "--n", 300)
    before = {path.name: path.read_bytes() for path in (run / "evaluations").glob("*.json")}
    call(evaluate.main, run, "--n", 300, "--guidance", 1)
    assert {path.name: path.read_bytes() for path in (run / "evaluations").glob("*.json")} == before
    call(evaluate.main, run, "--n", 300, "--guidance", 3, "--guidance-interval", 0.3, 5)
    new = [path for path in (run / "evaluations").glob("*.json") if path.name not in before]
    assert len(new) == 1
    text = new[0].read_text()
    assert json.loads(text)["metrics"] != json.loads(next(iter(before.values())))["metrics"]
    assert '"classifier-free"' in text and '"scale": 3.0' in text and '"low": 0.3' in text and '"high": 5.0' in text


def test_pictures_are_guided_too(run: Path, tmp_path: Path) -> None:
    made = []
    for name, more in {"plain": (), "one": ("--guidance", 1), "three": ("--guidance", 3)}.items():
        call(sample.main, run, "--steps", "heun", "--seeds", 3, 14, "--out", tmp_path / f"{name}.png", *more)
        made.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_edits_are_guided_too(run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(picture)
    made = []
    for name, more in {"plain": (), "one": ("--guidance", 1), "three": ("--guidance", 3)}.items():
        how = ("--times", 5, 1, "--label", 3, "--seeds", 0, "--out", tmp_path / name, *more)
        call(edit.main, "stroke", run, picture, *how)
        made.append(np.asarray(Image.open(tmp_path / name / "picture-stroke-0.png")))
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--guidance-interval", 0, 1), "says where --guidance holds, and there is none"),
        (("--guidance", 1, "--guidance-interval", 0, 1), "says where --guidance holds, and --guidance 1 is none"),
        (("--guidance", "nan"), "-100 to 100 is allowed"),
        (("--guidance", 101), "-100 to 100 is allowed"),
        (("--guidance", 2, "--guidance-interval", 3, 1), "0 <= LOW < HIGH is needed"),
        (("--guidance", 2, "--guidance-interval", "nan", 1), "0 <= LOW < HIGH is needed"),
    ],
)
def test_what_cannot_be_is_one_sentence(run: Path, tmp_path: Path, options: tuple[object, ...], sentence: str) -> None:
    for main, out in ((evaluate.main, ()), (sample.main, ("--out", tmp_path / "s.png"))):
        with pytest.raises(ConfigError) as error:
            call(main, run, *options, *out)
        assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["plain", "undropped"])
def test_a_model_that_has_not_learnt_no_class_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    """A vector of no class that no label was ever dropped for is as it was drawn."""
    more = {"plain": {}, "undropped": {"network": GUIDABLE["network"]}}[name]
    other = make_run(run.parent, name, run.parent / "data", "denoising", **more)
    with pytest.raises(ConfigError, match=f"{name} cannot be guided"):
        call(sample.main, other, "--guidance", 2, "--out", tmp_path / "s.png")


def test_the_labels_that_are_dropped_are_a_function_of_seed_and_number() -> None:
    labels = torch.arange(2000) % 10

    def batch(number: int) -> MicroBatch:
        return MicroBatch(number, labels, labels, labels, [])

    a, b, other = (labels_of(batch(number), 0.2, 7) for number in (1, 1, 2))
    assert a is not None and b is not None and other is not None
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert not torch.equal(a, labels_of(batch(1), 0.2, 8))
    dropped = a == NULL
    assert torch.equal(a[~dropped], labels[~dropped]) and 0.17 < dropped.double().mean() < 0.23
    assert labels_of(batch(1), 0.0, 7) is labels


def test_accuracy_is_the_share_that_the_classifier_takes_for_one_of_its_class(run: Path) -> None:
    """Of seeds that begin within a group of images, and end in another block."""
    call(evaluate.main, run, "--n", 200, "--seed", 37, "--metrics", "accuracy", "--steps", "heun")
    (value,) = (
        value
        for path in (run / "evaluations").glob("*.json")
        for name, value in json.loads(path.read_text())["metrics"].items()
        if name.startswith("accuracy")
    )
    model = build.open_model(str(run))
    (sampler,) = quality.samplers(model.config, model.denoiser(), ["heun"])
    task = generation.Task(range(37, 237), quality.shape(model.config), 10, sampler.draws)
    images = generation.images(task, sampler.sample, torch.device("cpu"))
    net, _ = extractors.classifier(open_dataset(model.config.data.url))
    with torch.inference_mode():
        right = net(images).argmax(1) == torch.arange(37, 237) % 10
    assert value == float(right.double().mean()) and 0 < value < 1


def test_accuracy_of_what_has_no_classes_is_refused(run: Path) -> None:
    none = make_run(run.parent, "none", run.parent / "data", "denoising")
    path = none / "config.yaml"
    path.write_text(path.read_text().replace("classes: 10", "classes: 0"))
    with pytest.raises(ConfigError, match=r"--metrics accuracy: none has no classes"):
        call(evaluate.main, none, "--metrics", "accuracy")


def test_a_worse_model_guides_and_its_weights_are_recorded(run: Path, tmp_path: Path) -> None:
    """Autoguidance: the baseline is another run; neither needs to know no class."""
    data = run.parent / "data"
    better, worse = (make_run(tmp_path / "runs", name, data, "denoising", step=step) for name, step in NAMED)
    made = []
    for name, more in {"plain": (), "guided": ("--guidance", 2, "--guide", worse)}.items():
        call(sample.main, better, "--steps", "heun", "--seeds", 3, 14, "--out", tmp_path / f"{name}.png", *more)
        made.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert not np.array_equal(made[0], made[1])
    call(evaluate.main, better, "--n", 200, "--guidance", 2, "--guide", worse)
    (record,) = figures(better)
    assert record["sampling"]["guidance"].pop("weights").startswith("xxh3:")
    assert record["sampling"]["guidance"] == {"kind": "auto", "scale": 2.0, "low": 0.0, "high": None}
    student = make_run(tmp_path / "runs", "ct", data)
    for url, options, sentence in (
        (better, ("--guide", worse), "a scale other than 1 is needed"),
        (better, ("--guidance", 2, "--guide", student), "ct is no denoiser"),
        (better, ("--guidance", 2, "--guide", tmp_path / "no.safetensors"), "no.safetensors is not there"),
        (student, ("--guidance", 2, "--guide", worse), "ct cannot be guided by another model: it is no denoiser"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            call(evaluate.main, url, "--n", 200, *options)


def test_a_student_that_was_told_scales_is_asked_for_one(run: Path, tmp_path: Path) -> None:
    told = {
        "objective": {"kind": "consistency_distillation", "teacher": str(run), "guidance_range": [1.0, 4.0]},
        "network": NETWORK | {"told_guidance": True},
    }
    student = make_run(tmp_path, "student", run.parent / "data", **told)
    made = []
    for name, more in {"plain": (), "one": ("--guidance", 1), "three": ("--guidance", 3)}.items():
        call(sample.main, student, "--steps", 1, 2, "--seeds", 3, 14, "--out", tmp_path / f"{name}.png", *more)
        made.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    call(evaluate.main, student, "--n", 200, "--steps", 1, "--guidance", 3)
    (record,) = figures(student)
    assert record["sampling"]["guidance"] == {"kind": "told", "scale": 3.0, "low": 0.0, "high": None}
    for options in (("--guidance", 5), ("--guidance", 0.5), ("--guidance", 2, "--guidance-interval", 0.1, 1)):
        with pytest.raises(ConfigError, match=r"was told scales of guidance in \[1.0, 4.0\]"):
            call(evaluate.main, student, "--n", 200, *options)
