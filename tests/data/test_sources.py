import numpy as np
import pytest
from conftest_data import png
from PIL import Image

from cmdist.data.sources.base import centre_crop
from cmdist.data.sources.digits import digits
from cmdist.data.sources.files import folder
from cmdist.errors import DataError


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, data = digits(), load_digits()
    assert (source.count, source.image_size, source.channels) == (1797, 8, 1)
    pixels = np.stack([source.image(i) for i in range(1797)])
    assert pixels.dtype == np.uint8 and pixels.shape == (1797, 8, 8, 1)
    assert np.array_equal(np.unique(pixels), np.round(np.arange(17) * 255 / 16)) and pixels.min() == 0 and pixels.max() == 255
    assert np.array_equal(np.round(pixels[..., 0] * (16 / 255)), data.images)
    assert np.array_equal(source.labels, data.target) and source.classes == tuple("0123456789")


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/b/2.JPG", "cat/3.webp", "dog/readme.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        elif path.suffix == ".png":
            path.write_bytes(png(6))
        else:
            Image.new("L", (6, 6), 99).save(path)
    source = folder(tmp_path)
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 0, 1] and source.image_size == 6
    assert np.array_equal(source.image(1), np.full((6, 6, 3), 99)) and source.image(2)[0, 0].tolist() == [10, 20, 30]


def test_a_flat_folder_has_no_labels_and_size_crops(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30, 20))
    (tmp_path / "b.png").write_bytes(png(8, 9))
    source = folder(tmp_path, size=4)
    assert source.labels is None and source.classes == () and source.image_size == 4 and "ADM" in source.transform
    assert all(np.array_equal(source.image(i), np.full((4, 4, 3), [10, 20, 30])) for i in range(2))


@pytest.mark.parametrize("shape", [(64, 64), (37, 91), (200, 65), (33, 32), (20, 70)])
def test_centre_crop_is_boxes_then_bicubic(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), np.uint8))
    want, size = image, 32
    while min(want.size) >= 64:
        pixels = np.asarray(want).astype(np.float64)
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        if pixels.shape[0] % 2 == 0 and pixels.shape[1] % 2 == 0:  # halving even sides is the mean of 2x2 pixels
            mean = pixels.reshape(height, 2, width, 2, 3).mean((1, 3))
            assert np.abs(np.asarray(want.resize((width, height), Image.Resampling.BOX)) - mean).max() <= 1
        want = want.resize((width, height), Image.Resampling.BOX)
    scale = size / min(want.size)
    want = np.asarray(want.resize((round(want.width * scale), round(want.height * scale)), Image.Resampling.BICUBIC))
    top, left = (want.shape[0] - size) // 2, (want.shape[1] - size) // 2
    assert np.array_equal(np.asarray(centre_crop(image, size)), want[top : top + size, left : left + size])


def test_bad_folders_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none is not a folder"):
        folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images; files that end in png, jpg"):
        folder(tmp_path)
    (tmp_path / "a.png").write_bytes(png(6))
    (tmp_path / "b.png").write_bytes(png(6, 7))
    (tmp_path / "c.png").write_bytes(png(6)[:50])
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(tmp_path / "d.png")
    source = folder(tmp_path)
    source.image(0)
    with pytest.raises(DataError, match=r"b\.png is 6x7, not 6x6: give --size to crop and resize all images"):
        source.image(1)
    with pytest.raises(DataError, match=r"c\.png cannot be read as an image: "):
        source.image(2)
    with pytest.raises(DataError, match=r"d\.png cannot be read as an image: mode I;16 has more than 8 bits per channel"):
        source.image(3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.png").write_bytes(png(6))
    with pytest.raises(DataError, match=r"a\.png has no label: either all images of .* lie in sub-folders"):
        folder(tmp_path)
