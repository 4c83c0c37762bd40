import multiprocessing
import os

import lmdb
import numpy as np
import pytest

from cmdist.data.decode import BadImageError
from cmdist.data.preparing.sources.lsun import lsun
from cmdist.errors import DataError
from conftest_data import cropped, encoded, photo


def database(path, values):
    environment = lmdb.open(str(path), map_size=2**26)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    (path / "lock.mdb").unlink()  # LSUN's zip files hold data.mdb and lock.mdb; a read-only place may have none
    return path


@pytest.fixture
def bedroom(tmp_path):
    """Forty hexadecimal digits as keys and WebP or JPEG files of 256 pixels at least, as in bedroom_train_lmdb."""
    draw = np.random.default_rng(0)
    kinds = [("WEBP", {"quality": 80}), ("JPEG", {"quality": 75}), ("WEBP", {"lossless": True})]
    values = {}
    for i in range(9):
        kind, options = kinds[i % 3]
        values[draw.bytes(20).hex().encode()] = encoded(
            photo(i, 256 + 40 * (i % 2), 256 + 31 * (i % 4)), kind, **options
        )
    return database(tmp_path / "bedroom_train_lmdb", values), values


def test_images_come_in_the_order_of_keys_cropped_as_in_adm(bedroom):
    path, values = bedroom
    source = lsun(path)
    assert (source.name, source.count, source.image_size, source.channels) == ("bedroom_train_lmdb", 9, 256, 3)
    assert (
        source.labels is None
        and source.classes == ()
        and source.transform == "ADM centre crop: box halvings, then bicubic"
    )
    for i, key in enumerate(sorted(values)):
        assert np.array_equal(source.image(i), cropped(values[key], 256))
    small = lsun(path, 64)
    assert np.array_equal(small.image(4), cropped(values[sorted(values)[4]], 64))
    assert sorted(p.name for p in path.iterdir()) == ["data.mdb"]  # nothing is written there


def test_forked_processes_read_with_an_environment_of_their_own(bedroom, tmp_path):
    source = lsun(bedroom[0], 32)
    want = b"".join(source.image(i).tobytes() for i in range(9))

    def write(name):
        (tmp_path / name).write_bytes(b"".join(source.image(i).tobytes() for i in range(9)))

    processes = [multiprocessing.get_context("fork").Process(target=write, args=(name,)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == want
    assert source.image(0).tobytes() == want[: 32 * 32 * 3]


def test_another_database_has_another_fingerprint(bedroom, tmp_path):
    path, values = bedroom
    again = database(tmp_path / "again", values)
    fewer = database(tmp_path / "fewer", dict(list(values.items())[:-1]))
    assert lsun(path).fingerprint == lsun(again).fingerprint != lsun(fewer).fingerprint


def test_a_truncated_database_is_refused_and_does_not_kill_the_process(bedroom):
    path, _ = bedroom
    data = path / "data.mdb"
    whole = data.stat().st_size
    os.truncate(data, whole - 4096)
    with pytest.raises(
        DataError,
        match=rf"bedroom_train_lmdb is truncated: data\.mdb has {whole - 4096} bytes, its pages need {whole}$",
    ):
        lsun(path)
    for size in (8192, 5000, 100):
        os.truncate(data, size)
        with pytest.raises(DataError, match="bedroom_train_lmdb is truncated"):
            lsun(path)
    os.truncate(data, 0)
    with pytest.raises(DataError, match=r"is truncated or no LMDB: data\.mdb has 0 bytes$"):
        lsun(path)
    data.write_bytes(b"no database" * 5000)
    with pytest.raises(DataError, match="is truncated or no LMDB: "):
        lsun(path)


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none is no LMDB folder: it has no data\.mdb; give LSUN's unzipped folder"):
        lsun(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images: the database is empty"):
        lsun(database(tmp_path / "empty", {}))
    jpeg = encoded(photo(0, 300, 256))
    values = {b"a": jpeg, b"b": jpeg[: len(jpeg) // 2], b"c": encoded(photo(1, 300, 200)), b"d": b"nothing"}
    source = lsun(database(tmp_path / "cat_lmdb", values))
    source.image(0)
    with pytest.raises(BadImageError, match=r"cat_lmdb/b is not a readable image \(image file is truncated"):
        source.image(1)
    with pytest.raises(
        BadImageError,
        match=r"cat_lmdb/c is 300x200, smaller than the 256 pixels asked for: give a smaller --size, or --enl",
    ):
        source.image(2)
    with pytest.raises(
        BadImageError,
        match=r"cat_lmdb/d is not a readable image \(no image format that is allowed here: PNG, JPEG, WebP, PPM\)$",
    ):
        source.image(3)
    enlarged = lsun(tmp_path / "cat_lmdb", enlarge=True)
    assert np.array_equal(enlarged.image(2), cropped(values[b"c"], 256)) and "enlarged" in enlarged.transform
