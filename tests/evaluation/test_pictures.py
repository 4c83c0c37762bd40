import io

import numpy as np
import pytest
import torch
from PIL import Image

from cmdist.evaluation import pictures
from cmdist.report import charts


def test_grid_puts_images_row_by_row_with_square_pixels():
    images = torch.arange(5 * 2 * 3, dtype=torch.uint8).view(5, 1, 2, 3)
    pixels = np.asarray(pictures.grid(images, columns=2, scale=4))
    assert pixels.shape == (3 * (8 + 2) + 2, 2 * (12 + 2) + 2)
    for number in range(5):
        top, left = (number // 2) * 10 + 2, (number % 2) * 14 + 2
        found = pixels[top : top + 8, left : left + 12]
        assert np.array_equal(found, np.kron(images[number, 0].numpy(), np.ones((4, 4), dtype=np.uint8)))
    assert (pixels[22:, 16:] == 255).all()  # the place of the sixth


def test_grid_keeps_colours():
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    images[0, :, 0, 0] = torch.tensor([10, 20, 30], dtype=torch.uint8)
    picture = pictures.grid(images, columns=1)
    assert picture.getpixel((2, 2)) == (10, 20, 30)


@pytest.mark.parametrize("classes, columns", [(0, 10), (1, 10), (7, 7), (10, 10), (1000, 10)])
def test_columns(classes, columns):
    assert pictures.columns(classes) == columns


def test_side_by_side_shows_titles_and_every_block():
    blocks = [
        ("first run", torch.zeros(4, 1, 8, 8, dtype=torch.uint8)),
        ("second run", torch.tensor([99, 5, 200], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4, 1, 8, 8)),
    ]
    plain = np.asarray(
        pictures.side_by_side([(" ", images) for _, images in blocks], columns=2, heads=[" ", " "], scale=5)
    )
    titled = np.asarray(pictures.side_by_side(blocks, columns=2, heads=["0", "1"], scale=5))
    assert titled.shape[0] == plain.shape[0]
    assert (titled == (99, 5, 200)).all(axis=2).sum() == 4 * 40 * 40  # the second block, whole
    block = 2 * (40 + 2) + 2
    assert (titled[22 + 8 + 26 + 2 : 22 + 8 + 26 + 42, 10:50] == 0).all()
    rows = {
        "heads": slice(8, 30),
        "first": slice(30, 56),
        "second": slice(30 + 26 + block + 8, 30 + 26 + block + 8 + 26),
    }
    for place in rows.values():  # text is there
        assert (titled[place] < 128).any() and (plain[place] == 255).all()


def test_pack_gives_back_the_same_images():
    images = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, columns = pictures.unpack(pictures.pack(images, 3))
    assert torch.equal(found, images) and columns == 3


def test_png_is_a_png():
    picture = pictures.grid(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), columns=1)
    again = Image.open(io.BytesIO(pictures.png(picture)))
    assert again.format == "PNG" and again.size == picture.size


def test_chart_of_runs_with_and_without_figures():
    data = charts.comparison(
        [("a", [(1, 2.0), (2, 1.0)]), ("b", [])], [("a", {"fd_1step": 3.0, "fd_2step": 2.0}), ("b", {"fd_ode": 1.0})]
    )
    assert Image.open(io.BytesIO(data)).size == (1440, 540)
    assert charts.comparison([("a", [])], [("a", {})]).startswith(b"\x89PNG")


@pytest.mark.parametrize(("size", "kind", "side"), [(8, "png", 40), (64, "png", 64), (128, "webp", 64)])
def test_grid_for_a_page_is_small_and_clear_between_its_images(size, kind, side):
    images = torch.full((7, 3, size, size), 200, dtype=torch.uint8)
    content, found = pictures.for_page(images, 5)
    picture = Image.open(io.BytesIO(content))
    assert found == kind == picture.format.lower()
    assert picture.size == (5 * (side + 2) + 2, 2 * (side + 2) + 2)
    assert (
        picture.getpixel((0, 0))[3] == 0 and picture.getpixel((picture.width - 5, picture.height - 5))[3] == 0
    )  # no eighth image
    assert picture.getpixel((2 + side // 2, 2 + side // 2)) == pytest.approx((200, 200, 200, 255), abs=2)
