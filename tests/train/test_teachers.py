"""What a configuration names is looked at before a run starts: a teacher, a helper."""

from pathlib import Path

import pytest
import torch

from cmdist import build, config, models, pins, teachers
from cmdist.errors import CheckpointError, ConfigError
from cmdist.train import beforehand
from runs import GUIDABLE, make_data, make_run
from training import write_config

CD = ["objective.kind=consistency_distillation"]
TCM = ["objective.kind=truncated_consistency_training", "sampling.times=[80.0, 1.0]"]
PD = ["objective.kind=progressive_distillation", "init=teacher"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    data = make_data(root / "data", extractor=False)
    make_run(root / "runs", "edm", data, objective="denoising")
    make_run(root / "runs", "ct", data)
    return root


def check(root: Path, *overrides: str) -> None:
    made = config.load(write_config(root, str(root / "data")), overrides)
    beforehand.check_weights(made, str(root / "runs/new"), "auto")


def test_a_teacher_is_a_denoiser_of_the_same_images(root: Path) -> None:
    teacher = f"objective.teacher={root}/runs"
    check(root, *PD, f"{teacher}/edm")
    with pytest.raises(ConfigError, match=r"ct is no denoiser, its objective is consistency_training; a teacher must"):
        check(root, *PD, f"{teacher}/ct")
    with pytest.raises(ConfigError, match=r"edm has data.classes 10, this run has 0; they must be equal"):
        check(root, *PD, f"{teacher}/edm", "data.classes=0")
    with pytest.raises(CheckpointError, match=r"nowhere is not a run folder"):
        check(root, *PD, f"{teacher}/nowhere")


def test_a_guided_teacher_knows_the_label_of_no_class(root: Path) -> None:
    guided = [*CD, "objective.guidance=2.0", "network.norm_groups=by_width"]
    null = make_run(root / "runs", "null", root / "data", "denoising", **GUIDABLE)
    check(root, *guided, f"objective.teacher={null}")
    check(root, *guided, "objective.teacher=exact")
    (ema,) = list(null.glob("**/ema*.safetensors"))[:1]
    check(root, *guided, f"objective.teacher={ema}", "network.null_label=true")
    edm = next((root / "runs/edm").glob("**/ema*.safetensors"))
    network = GUIDABLE["network"]
    undropped = make_run(root / "runs", "undropped", root / "data", "denoising", network=network)
    for teacher in (root / "runs/edm", edm, undropped):
        with pytest.raises(ConfigError, match=r"guidance 2 asks teacher .* without a class, which it has not learnt"):
            check(root, *guided, f"objective.teacher={teacher}")
        check(root, *CD, guided[-1], f"objective.teacher={teacher}")


@pytest.mark.parametrize("kind", ["consistency_distillation", "scm_distillation", "continuous_distillation"])
def test_a_guided_teacher_is_d_null_and_w_times_the_rest(root: Path, kind: str) -> None:
    run = make_run(root / "runs", f"null-{kind}", root / "data", "denoising", **GUIDABLE)
    cpu = torch.device("cpu")
    for teacher in ("exact", str(run)):
        keys = [f"objective.kind={kind}", f"objective.teacher={teacher}"]
        plain = config.load(write_config(root, str(root / "data")), keys)
        more = [*keys, "objective.guidance=3.0", "objective.guidance_low=0.5", "objective.guidance_high=5.0"]
        guided = config.load(write_config(root, str(root / "data")), more)
        data = build.dataset(plain)
        unguided, denoise = (teachers.teacher(made, data, cpu) for made in (plain, guided))
        assert unguided is not None and denoise is not None
        x, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 5, 9])
        with torch.inference_mode():
            for sigma, w in ((0.5, 1.0), (2.0, 3.0), (5.0, 3.0), (5.1, 1.0)):
                level = torch.full((4,), sigma)
                of_class, of_none = unguided(x, level, labels), unguided(x, level, torch.full_like(labels, -1))
                truth = of_none + w * (of_class - of_none)
                torch.testing.assert_close(denoise(x, level, labels), truth, atol=1e-5, rtol=1e-5)


def test_a_second_stage_needs_a_first_that_is_a_consistency_model_of_the_same_images(root: Path) -> None:
    def second(first: str, *more: str) -> None:
        check(root, *TCM, f"objective.first={root}/runs/{first}", f"init={root}/runs/{first}", *more)

    second("ct")
    with pytest.raises(ConfigError, match=r"objective.first .*edm is no consistency model, its objective is denoising"):
        second("edm")
    with pytest.raises(ConfigError, match=r"objective.first .*ct has data.classes 10, this run has 0"):
        second("ct", "data.classes=0")
    with pytest.raises(CheckpointError, match=r"nowhere is not a run folder"):
        second("nowhere")


def test_a_teacher_is_guided_away_from_a_worse_one(root: Path) -> None:
    """A run or a file; neither knows the label of no class, and images may have no classes."""
    cpu, worse = torch.device("cpu"), make_run(root / "runs", "worse", root / "data", "denoising", step=3, emas=(0.9,))
    (ema,) = list(worse.glob("**/ema*.safetensors"))[:1]
    follow = [*CD, f"objective.teacher={root}/runs/edm", "network.norm_groups=by_width"]
    plain = config.load(write_config(root, str(root / "data")), follow)
    data = build.dataset(plain)
    x, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 5, 9])
    better = teachers.teacher(plain, data, cpu)
    bad = build.load_denoiser(models.open_run(str(worse)))
    assert better is not None
    for guide in (worse, ema):
        keys = [*follow, f"objective.guide={guide}", "objective.guidance=1.7", "objective.guidance_low=0.5"]
        check(root, *keys)
        assert pins.named(config.load(write_config(root, "none"), keys))["objective.guide"] == str(guide)
        denoise = teachers.teacher(config.load(write_config(root, str(root / "data")), keys), data, cpu)
        assert denoise is not None
        with torch.inference_mode():
            for sigma, w in ((0.5, 1.0), (2.0, 1.7)):
                level = torch.full((4,), sigma)
                good, away = better(x, level, labels), bad(x, level, labels)
                torch.testing.assert_close(denoise(x, level, labels), away + w * (good - away), atol=1e-5, rtol=1e-5)


def test_a_guide_is_a_denoiser_of_the_same_images(root: Path) -> None:
    keys = [*CD, f"objective.teacher={root}/runs/edm", "objective.guidance=1.7"]
    with pytest.raises(ConfigError, match=r"guide .*ct is no denoiser, its objective is .*; a guide must be one"):
        check(root, *keys, f"objective.guide={root}/runs/ct")
    with pytest.raises(CheckpointError, match=r"objective.guide: .*nowhere is not a run folder"):
        check(root, *keys, f"objective.guide={root}/nowhere")
    with pytest.raises(ConfigError, match=r"objective.guide .*nowhere.pt is not there"):
        check(root, *keys, f"objective.guide={root}/nowhere.pt")
