"""Editing as its user does it, with the weights of emoji that come with the code."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmdist.errors import CmdistError, ConfigError, DataError
from ranks import REPOSITORY, pipeline
from runs import call, make_data, make_run

edit = pipeline("edit")
EMOJI = REPOSITORY / "configs/emoji"
STUDENT = (EMOJI / "cd.yaml", "--weights", EMOJI / "weights/cd.safetensors")
TEACHER = (EMOJI / "edm.yaml", "--weights", EMOJI / "weights/edm.safetensors")
QUICK = ("--times", 80, 2, "--seeds", 0, 3)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red disc on white, and beside it what users bring: a grey one, a small one."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:32, :32]
    disc = (y - 15.5) ** 2 + (x - 15.5) ** 2 < 120
    Image.fromarray(np.where(disc[..., None], [220, 40, 30], 255).astype(np.uint8)).save(folder / "disc.png")
    Image.fromarray(np.where(disc, 90, 255).astype(np.uint8)).save(folder / "grey.png")
    return folder / "disc.png"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), np.float64)


def result(tmp_path: Path, task: str, *arguments: object, model: Sequence[object] = STUDENT) -> list[np.ndarray]:
    call(edit.main, task, model[0], *arguments, *model[1:], *QUICK, "--out", tmp_path)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 4 * 96 and len(set(sheet.getdata())) > 50
    return [pixels(path) for path in sorted(tmp_path.glob(f"*-{task}-*.png"))]


@pytest.mark.parametrize("model", [STUDENT, TEACHER], ids=["consistency model", "denoiser"])
def test_inpainting_keeps_all_but_the_mask(tmp_path: Path, picture: Path, model: Sequence[object], capsys) -> None:
    first, second = result(tmp_path, "inpaint", picture, "--mask", "left", model=model)
    assert np.array_equal(first[:, 16:], pixels(picture)[:, 16:]) and np.array_equal(second[:, 16:], first[:, 16:])
    assert np.abs(first[:, :16] - second[:, :16]).mean() > 5  # another seed, another left half
    kept = re.search(r"disc: seeds 0, 3; known part kept to (\S+)", capsys.readouterr().out)
    assert kept and float(kept[1]) < 1e-5


def test_colourisation_keeps_the_luma_of_a_grey_picture(tmp_path: Path, picture: Path, capsys) -> None:
    first, _ = result(tmp_path, "colourise", picture.with_name("grey.png"))
    assert first.shape == (32, 32, 3) and np.ptp(first, axis=2).max() > 5  # colours have come
    kept = re.search(r"known part kept to (\S+)", capsys.readouterr().out)
    assert kept and float(kept[1]) < 1e-5


def test_small_pictures_are_enlarged_and_their_pixels_stay(tmp_path: Path, picture: Path, capsys) -> None:
    small = tmp_path / "small.png"
    Image.open(picture).resize((8, 8), Image.Resampling.BOX).save(small)
    first, _ = result(tmp_path / "out", "superresolve", small, "--patch", 4)
    means = first.reshape(8, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(means - pixels(small)).mean() < 6  # but for what was clamped to 0 ... 255
    kept = re.search(r"known part kept to (\S+)", capsys.readouterr().out)
    assert kept and float(kept[1]) < 1e-5


def test_strokes_and_denoising(tmp_path: Path, picture: Path) -> None:
    near = [np.abs(each - pixels(picture)).mean() for each in result(tmp_path / "a", "stroke", picture)]
    call(edit.main, "stroke", STUDENT[0], picture, *STUDENT[1:], "--seeds", 0, "--times", 0.1, "--out", tmp_path / "b")
    assert np.abs(pixels(tmp_path / "b/disc-stroke-0.png") - pixels(picture)).mean() < min(near)
    options = ("--seeds", 0, "--sigma", 0.5, "--add-noise", "--out", tmp_path / "c")
    call(edit.main, "denoise", STUDENT[0], picture, *STUDENT[1:], *options)
    assert np.abs(pixels(tmp_path / "c/disc-denoise-0.png") - pixels(picture)).mean() < 25


def test_folders_and_mask_files(tmp_path: Path, picture: Path) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 5, 5))
    mask.save(tmp_path / "mask.png")
    images = result(tmp_path / "out", "inpaint", picture.parent, "--mask", tmp_path / "mask.png")
    assert len(images) == 4  # two pictures, two seeds
    assert np.array_equal(images[0][5:], pixels(picture)[5:])


def wrong(folder: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    for name, size, colour in (("black", (32, 32), 0), ("white", (32, 32), 255), ("wide", (40, 30), 100)):
        Image.new("L", size, colour).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir(exist_ok=True)
    disc = folder / "black.png"
    return {
        "another size": (("inpaint", folder / "wide.png", "--mask", "left"), "is 40x30, and the model makes 32x32"),
        "no picture": (("colourise", folder / "text.png"), "text.png"),
        "not there": (("colourise", folder / "nothing.png"), "there is no picture"),
        "an empty folder": (("colourise", folder / "empty"), "there are no pictures"),
        "an empty mask": (("inpaint", disc, "--mask", folder / "black.png"), "generates nothing: nowhere is it white"),
        "a mask of all": (("inpaint", disc, "--mask", folder / "white.png"), "keeps nothing: all of it is white"),
        "no mask": (("inpaint", disc), "inpaint needs --mask"),
        "a mask for another task": (("stroke", disc, "--mask", "left"), "--mask is for inpaint, not for stroke"),
        "a name that is no mask": (
            ("inpaint", disc, "--mask", "middle"),
            "centre, left, right, top, bottom, random:0.5",
        ),
        "times out of order": (("colourise", disc, "--times", 1, 2), r"the times \[1.0, 2.0\] must fall"),
        "times too high": (("colourise", disc, "--times", 100, 2), "from at most sigma_max"),
        "times too low": (("colourise", disc, "--times", 2, 0.001), "above sigma_min"),
        "a patch that does not divide": (("superresolve", disc, "--patch", 5), "a divisor of the model's 32 pixels"),
        "sigma 0": (("denoise", disc, "--sigma", 0), "--sigma 0: above 0.002"),
        "times for one step": (("denoise", disc, "--times", 1), "it has no --times"),
        "a label without classes": (("colourise", disc, "--label", 1), "this model has no classes"),
        "a negative seed": (("colourise", disc, "--seeds", -1), "numbers of 0 or more"),
    }


CASES = (
    "another size",
    "no picture",
    "not there",
    "an empty folder",
    "an empty mask",
    "a mask of all",
    "no mask",
    "a mask for another task",
    "a name that is no mask",
    "times out of order",
    "times too high",
    "times too low",
    "a patch that does not divide",
    "sigma 0",
    "times for one step",
    "a label without classes",
    "a negative seed",
)


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_edited_is_one_sentence(tmp_path: Path, case: str) -> None:
    (task, *rest), sentence = wrong(tmp_path)[case]
    with pytest.raises(CmdistError, match=sentence) as refused:
        call(edit.main, task, STUDENT[0], *rest, *STUDENT[1:], "--out", tmp_path / "out")
    assert isinstance(refused.value, ConfigError | DataError) and not (tmp_path / "out").exists()


def test_a_model_with_classes_needs_a_label(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ct", make_data(tmp_path / "data"))
    Image.new("L", (8, 8), 80).save(tmp_path / "small.png")
    arguments = ("inpaint", run, tmp_path / "small.png", "--mask", "top", "--times", 80, 1, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="conditional on 10 classes: --label 0 ... 9 is needed"):
        call(edit.main, *arguments)
    with pytest.raises(ConfigError, match=r"--label 10: 0 ... 9 are allowed"):
        call(edit.main, *arguments, "--label", 10)
    with pytest.raises(ConfigError, match="needs a model of RGB images"):
        call(edit.main, "colourise", *arguments[1:3], "--label", 1, "--out", tmp_path / "out")
    call(edit.main, *arguments, "--label", 3)
    assert np.array_equal(pixels(tmp_path / "out/small-inpaint-0.png")[4:], pixels(tmp_path / "small.png")[4:])
