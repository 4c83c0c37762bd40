"""Five glyphs of Noto Color Emoji (tests/fixtures/emoji, SIL Open Font License) as pictures."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont

from cmdist.data.images import open_dataset
from cmdist.data.preparing.sources import font as module
from cmdist.data.preparing.sources.font import font
from cmdist.errors import DataError
from ranks import REPOSITORY, pipeline
from runs import call

FIVE = REPOSITORY / "tests/fixtures/emoji/five.ttf"


def test_glyphs_are_laid_on_the_background_squared_and_resized() -> None:
    source = font(FIVE, 32)
    assert (source.count, source.image_size, source.channels, source.labels) == (5, 32, 3, None)
    images = [source.image(i) for i in range(5)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    assert all((image[0, [0, -1]] == 255).all() for image in images)  # corners
    heart = images[4]  # by name: u1F600, u1F436, u1F34E, u1F697 and uni2764
    assert heart[12, 16, 0] > 180 and heart[12, 16, 1] < 100  # red
    assert "#ffffff" in source.transform and "2.042" in source.transform
    black = font(FIVE, 32, background=(0, 0, 0)).image(4)
    assert (black[0, 0] == 0).all() and np.abs(black[12, 16].astype(int) - heart[12, 16]).max() <= 2


def test_glyphs_keep_their_size_without_another() -> None:
    source = font(FIVE)
    assert source.image_size == 136 and source.image(0).shape == (136, 136, 3)
    assert (source.image(0)[:4] == 255).all()  # 128 rows in the middle of 136


def test_a_split_keeps_glyphs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_OUT", 2)
    train, test = font(FIVE, 32), font(FIVE, 32, "test")
    assert (train.count, test.count, test.name) == (3, 2, "five-test")
    all_of_them = {source.image(i).tobytes() for source in (train, test) for i in range(source.count)}
    assert len(all_of_them) == 5


def test_the_same_picture_under_two_names_counts_once(tmp_path: Path) -> None:
    with TTFont(FIVE) as file:
        (strike,) = file["CBDT"].strikeData
        assert strike["u1F600"].imageData != strike["uni2764"].imageData  # both are read now
        strike["u1F600"].imageData = strike["uni2764"].imageData
        file.save(tmp_path / "twice.ttf")
    assert font(tmp_path / "twice.ttf", 32).count == 4


def test_what_is_no_such_font_is_said(tmp_path: Path) -> None:
    with TTFont(FIVE) as file:
        del file["CBDT"], file["CBLC"]
        file.save(tmp_path / "plain.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    (tmp_path / "cut.ttf").write_bytes(FIVE.read_bytes()[:6000])
    with pytest.raises(DataError, match=r"plain.ttf has no colour bitmaps \(table CBDT\)"):
        font(tmp_path / "plain.ttf")
    for name in ("text.ttf", "cut.ttf"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a font|glyph"):
            font(tmp_path / name)
    with pytest.raises(DataError, match="there is no file"):
        font(tmp_path / "nothing.ttf")


def test_a_font_becomes_a_data_set(tmp_path: Path) -> None:
    command = ("font", FIVE, "--size", 16, "--out", tmp_path / "data", "--workers", 1, "--format", "png")
    call(pipeline("prepare_data").main, *command)
    data = open_dataset(str(tmp_path / "data"))
    images = {image.permute(1, 2, 0).numpy().tobytes() for image in data.images(range(5))}
    source = font(FIVE, 16)
    assert images == {source.image(i).tobytes() for i in range(5)}
