import io
import struct
import zipfile

import numpy as np
import pytest

from cmdist.data.preparing.sources.imagenet64 import imagenet64
from cmdist.errors import DataError

ROW = 12288


def batch(seed, n=5):
    draw = np.random.default_rng(seed)
    return {
        "data": draw.integers(0, 256, (n, ROW), np.uint8),
        "labels": draw.integers(1, 1001, n).astype(np.int64),
        "mean": draw.random(ROW),
    }


@pytest.fixture(params=[np.savez, np.savez_compressed])
def folder(request, tmp_path):
    for n in range(1, 11):
        request.param(tmp_path / f"train_data_batch_{n}.npz", **batch(n, 3 + n % 2))
    return tmp_path


def test_rows_are_channel_first_and_labels_start_at_one(folder):
    source = imagenet64(folder)
    batches = [batch(n, 3 + n % 2) for n in range(1, 11)]  # batch 2 before batch 10
    data, labels = (np.concatenate([b[name] for b in batches]) for name in ("data", "labels"))
    assert (source.count, source.image_size, source.channels) == (35, 64, 3)
    assert source.labels.tolist() == (labels - 1).tolist() and source.classes == tuple(str(i) for i in range(1, 1001))
    assert source.transform == "official downsampled ImageNet64"
    for i in range(35):
        image = source.image(i)
        for channel in range(3):  # as the data set's page says: red, green, blue, each row after row
            assert np.array_equal(image[..., channel].ravel(), data[i, 4096 * channel : 4096 * (channel + 1)])


def test_stored_arrays_are_mapped_not_read(tmp_path):
    """A batch that says it has 20 GB, with a hole for its data, opens at once."""
    n = 1_700_000
    path, header = tmp_path / "val_data.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (n, ROW)})
    size = len(header.getvalue()) + n * ROW
    local = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, 8, 20)
        + b"data.npy"
        + struct.pack("<2H2Q", 1, 16, size, size)
    )
    labels = io.BytesIO()
    np.save(labels, np.ones(n, np.int64))
    with open(path, "wb") as file:
        file.write(local + header.getvalue())
        file.seek(len(local) + size - 1)
        file.write(b"\7")
        second = file.tell()
        small = labels.getvalue()
        crc = zipfile.crc32(small)
        file.write(
            struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, len(small), len(small), 10, 0)
            + b"labels.npy"
            + small
        )
        begin = file.tell()
        extra = struct.pack("<2H2Q", 1, 16, size, size)
        file.write(
            struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 33, 0, 2**32 - 1, 2**32 - 1, 8, len(extra), 0, 0, 0, 0, 0
            )
        )
        file.write(b"data.npy" + extra)
        extra = struct.pack("<2HQ", 1, 8, second)
        file.write(
            struct.pack(
                "<4s6H3I5H2I",
                b"PK\1\2",
                45,
                45,
                0,
                0,
                0,
                33,
                crc,
                len(small),
                len(small),
                10,
                len(extra),
                0,
                0,
                0,
                0,
                2**32 - 1,
            )
        )
        file.write(b"labels.npy" + extra)
        length = file.tell() - begin
        end = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, length, begin))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, length, 2**32 - 1, 0))
    source = imagenet64(path)
    assert source.count == n and source.image(n - 1)[-1, -1].tolist() == [0, 0, 7] and not source.image(0).any()


def test_a_class_map_gives_the_labels_of_sorted_synsets(folder, tmp_path):
    names = [f"n{number:08d}" for number in np.random.default_rng(0).permutation(1000) + 1440764]
    path = tmp_path / "map_clsloc.txt"
    path.write_text("".join(f"{name} {i} some_name\n" for i, name in enumerate(names, 1)))
    plain, mapped = imagenet64(folder), imagenet64(folder, class_map=path)
    assert list(mapped.classes) == sorted(names)
    assert [mapped.classes[label] for label in mapped.labels] == [names[label] for label in plain.labels]
    path.write_text(path.read_text().replace(f"{names[7]} 8 ", f"{names[7]} 9 "))
    with pytest.raises(
        DataError, match=r"map_clsloc\.txt is no class map: 1000 lines like 'n02119789 1 kit_fox' are needed"
    ):
        imagenet64(folder, class_map=path)


def test_a_missing_batch_is_named(folder):
    (folder / "train_data_batch_7.npz").unlink()
    with pytest.raises(DataError, match=r"train_data_batch_7\.npz is missing; give the folder of the 10 files"):
        imagenet64(folder)
    assert imagenet64(folder, batches=6).count == 21


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"data": np.zeros((5, 3072), np.uint8)},
            r"data is \(5, 3072\) uint8, not \(n, 12288\) uint8, one row for each image$",
        ),
        ({"data": np.zeros((5, 3, 64, 64), np.uint8)}, r"data is \(5, 3, 64, 64\) uint8, not \(n, 12288\)"),
        ({"data": np.zeros((5, ROW), np.float32)}, r"data is \(5, 12288\) float32, not"),
        (
            {"data": np.asfortranarray(np.zeros((5, ROW), np.uint8))},
            r"data is \(5, 12288\) uint8 stored column by column \(Fortran order\), not",
        ),
        ({"data": np.zeros((0, ROW), np.uint8)}, r"is empty: data has no rows$"),
        ({"labels": np.ones(4, np.int64)}, r"labels is \(4,\) int64, not \(5,\) integers, one for each row of data$"),
        ({"labels": np.ones(5)}, r"labels is \(5,\) float64, not \(5,\) integers"),
        ({"labels": np.array([1, 2, 3, 0, 1])}, r"labels go from 0 to 3; those of ImageNet64 go from 1 to 1000$"),
        ({"labels": np.array([1, 2, 3, 1001, 1])}, r"labels go from 1 to 1001; those"),
        (
            {"labels": np.array([1, "x", None, 2, 3], object)},
            r"labels\.npy holds pickled Python objects, which are refused$",
        ),
        ({"data": None}, r"has no array 'data'; a batch of ImageNet64 has data and labels$"),
    ],
)
def test_wrong_arrays_are_one_sentence(tmp_path, change, sentence):
    arrays = {name: array for name, array in (batch(0) | change).items() if array is not None}
    np.savez(tmp_path / "val_data.npz", **arrays)
    with pytest.raises(DataError, match=r"val_data\.npz:? " + sentence):
        imagenet64(tmp_path / "val_data.npz")


def test_a_truncated_file_and_one_that_lies_are_refused(tmp_path):
    path = tmp_path / "val_data.npz"
    np.savez(path, **batch(0))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"val_data\.npz is truncated or no npz file: "):
        imagenet64(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, ROW)})
    labels = io.BytesIO()
    np.save(labels, np.ones(5, np.int64))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header.getvalue() + bytes(10**6))
        archive.writestr("labels.npy", labels.getvalue())
    with pytest.raises(DataError, match=r"labels is \(5,\) int64, not \(1000000000,\) integers"):
        imagenet64(path)


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 99)], ids=["encrypted", "unknown compression"])
def test_encrypted_and_unknown_members_are_one_sentence(tmp_path, offset, value):
    path = tmp_path / "val_data.npz"
    np.savez(path, **batch(0))
    whole = bytearray(path.read_bytes())
    for start, shift in (
        (b"PK\3\4", 0),
        (b"PK\1\2", 2),
    ):  # flags and method in the member's own header and in the directory
        at = whole.find(start)
        whole[at + offset + shift] = value
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"val_data\.npz is truncated or no npz file: "):
        imagenet64(path)


def test_a_damaged_array_header_is_one_sentence(tmp_path):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (5,"
    with zipfile.ZipFile(tmp_path / "val_data.npz", "w") as archive:
        archive.writestr("data.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        archive.writestr("labels.npy", b"")
    with pytest.raises(DataError, match=r"val_data\.npz is truncated or no npz file: "):
        imagenet64(tmp_path / "val_data.npz")


def test_a_row_count_beyond_any_memory_is_refused(tmp_path):
    n, arrays = 10**15, {"data": (10**15, ROW), "labels": (10**15,)}
    with zipfile.ZipFile(tmp_path / "val_data.npz", "w") as archive:
        for name, shape in arrays.items():
            header = io.BytesIO()
            kind = "|u1" if name == "data" else "<i8"
            np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataError, match=rf"data has 100 bytes, not the {n * ROW} of its shape"):
        imagenet64(tmp_path / "val_data.npz")
