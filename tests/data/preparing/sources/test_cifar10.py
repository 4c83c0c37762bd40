import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest

from cmdist.data.preparing.sources import cifar10 as cifar10_module
from cmdist.data.preparing.sources.cifar10 import cifar10
from cmdist.errors import DataError
from conftest_data import link, tar_of

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
N = 6  # images in a file


def batches():
    """Pixels (N, 3, 32, 32) and labels of each of the six published files."""
    draw = np.random.default_rng(0)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    return {name: (draw.integers(0, 256, (N, 3, 32, 32), np.uint8), draw.integers(0, 10, N)) for name in names}


def binary():
    files = {
        f"{name}.bin": b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
        for name, (images, labels) in batches().items()
    }
    return files | {"batches.meta.txt": "".join(f"{name}\n" for name in NAMES).encode() + b"\n", "readme.html": b"<p>"}


def python2_pickle(data, labels):
    """A dictionary as Python 2 with numpy 1 pickled it (protocol 2, byte strings, numpy.core), opcode by opcode."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    state = b"(K\x01" + b"M" + len(data).to_bytes(2, "little") + b"M\x00\x0c\x86" + dtype + b"\x89"
    state += b"T" + data.nbytes.to_bytes(4, "little") + data.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}("
        + text(b"data")
        + array
        + state
        + text(b"labels")
        + numbers
        + text(b"batch_label")
        + text(b"x")
        + b"u."
    )


def pickled():
    files = {
        name: python2_pickle(images.reshape(N, -1), labels.tolist()) for name, (images, labels) in batches().items()
    }
    meta = pickle.dumps({b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}, protocol=3)
    return files | {"batches.meta": meta}


def in_folder(root, files):
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def in_archive(root, files):
    return tar_of(
        root.with_suffix(".tar.gz"), [(f"cifar-10-batches/{name}", content) for name, content in files.items()]
    )


def pickled_by_python3(protocol):
    """As tools that write CIFAR-10 anew leave it."""

    def version():
        files = {
            name: pickle.dumps({b"data": images.reshape(N, -1), b"labels": labels.tolist()}, protocol)
            for name, (images, labels) in batches().items()
        }
        return files | {"batches.meta": pickle.dumps({"label_names": [name.encode() for name in NAMES]}, protocol)}

    return version


@pytest.mark.parametrize("version", [binary, pickled, pickled_by_python3(2), pickled_by_python3(4)])
@pytest.mark.parametrize("place", [in_folder, in_archive])
def test_both_published_versions(tmp_path, version, place):
    path = place(tmp_path / "cifar-10", version())
    for split, names in (("train", [f"data_batch_{n}" for n in range(1, 6)]), ("test", ["test_batch"])):
        source = cifar10(path, split, records=N)
        images, labels = (np.concatenate([batches()[name][k] for name in names]) for k in (0, 1))
        assert (
            source.count == len(labels) and source.classes == tuple(NAMES) and source.labels.tolist() == labels.tolist()
        )
        for i in range(source.count):
            image = source.image(i)
            assert image.shape == (32, 32, 3) and image[5, 7].tolist() == images[i, :, 5, 7].tolist()
            assert np.array_equal(image, np.moveaxis(images[i], 0, -1))


def test_the_handmade_pickle_is_one_that_pickle_reads():
    images, labels = batches()["test_batch"]
    read = pickle.loads(python2_pickle(images.reshape(N, -1), labels.tolist()), encoding="bytes")
    assert np.array_equal(read[b"data"], images.reshape(N, -1)) and read[b"labels"] == labels.tolist()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_names_a_class_is_refused_and_runs_nothing(tmp_path):
    files = pickled() | {"data_batch_3": pickle.dumps({b"data": Evil(tmp_path / "ran")}, protocol=2)}
    with pytest.raises(DataError, match=r"data_batch_3 names \w+\.open; only numpy arrays are read from a pickle, use"):
        cifar10(in_folder(tmp_path / "c", files), records=N)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data_batch_2.bin": None}, r"has no data_batch_2\.bin; CIFAR-10's train images are in data_batch_1, "),
        (
            {"data_batch_2.bin": binary()["test_batch.bin"][:-1]},
            rf"data_batch_2\.bin has {N * 3073 - 1} bytes, not {N * 3073}: {N} images of",
        ),
        (
            {"data_batch_2.bin": binary()["test_batch.bin"][3073:]},
            rf"data_batch_2\.bin has {(N - 1) * 3073} bytes, not {N * 3073}",
        ),
        (
            {"data_batch_2.bin": b"\x0b" + binary()["test_batch.bin"][1:]},
            r"labels go from 0 to 11; those of CIFAR-10 go from 0 to 9$",
        ),
        ({"batches.meta.txt": None}, r"has no batches\.meta\.txt, which names the classes$"),
        ({"batches.meta.txt": b"cat\ndog\n"}, r"batches\.meta\.txt names 2 classes, not 10$"),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path, change, sentence):
    files = {name: content for name, content in (binary() | change).items() if content is not None}
    for place in (in_folder, in_archive):
        with pytest.raises(DataError, match=sentence):
            cifar10(place(tmp_path / "c", files), records=N)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (b"\x80\x02}", r"data_batch_1 is truncated or no pickle: "),
        (pickle.dumps([1]), r"data_batch_1 holds no dictionary$"),
        (pickle.dumps({b"data": b"bytes", b"labels": [0] * N}), rf"data is not an array \({N}, 3072\) of uint8$"),
        (
            python2_pickle(np.zeros((N, 3072), np.uint8), [1] * (N - 1)),
            rf"labels is not a list of {N} integers from 0 to 9$",
        ),
        (
            pickle.dumps({b"data": np.zeros((N, 3072), np.uint8), b"labels": [1] * (N - 1) + [2**70]}, 2),
            rf"data_batch_1: labels is not a list of {N} integers from 0 to 9$",
        ),
    ],
)
def test_wrong_pickles_are_one_sentence(tmp_path, batch, sentence):
    with pytest.raises(DataError, match=sentence):
        cifar10(in_folder(tmp_path / "c", pickled() | {"data_batch_1": batch}), records=N)


@pytest.mark.parametrize("names", [7, [7] * 10, None])
def test_wrong_names_of_classes_are_one_sentence(tmp_path, names):
    files = pickled() | {"batches.meta": pickle.dumps({"label_names": names})}
    with pytest.raises(DataError, match=r"batches\.meta: label_names is not a list of names$"):
        cifar10(in_folder(tmp_path / "c", files), records=N)


def test_names_of_classes_may_be_text(tmp_path):
    files = pickled() | {"batches.meta": pickle.dumps({"label_names": NAMES})}
    assert cifar10(in_folder(tmp_path / "c", files), records=N).classes == tuple(NAMES)


def test_unsafe_and_damaged_archives_are_one_sentence(tmp_path):
    path = tmp_path / "c.tar.gz"
    with pytest.raises(
        DataError, match=r"holds a member '\.\./data_batch_1\.bin': names that are absolute or hold '\.\.' are refused$"
    ):
        cifar10(tar_of(path, [("../data_batch_1.bin", b"x")]))
    with pytest.raises(DataError, match=r"holds a link 'x/data_batch_1\.bin': links are refused$"):
        cifar10(tar_of(path, [("", link("x/data_batch_1.bin"))]))
    whole = in_archive(tmp_path / "whole", binary()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"c\.tar\.gz is truncated or no tar file: "):
        cifar10(path, records=N)
    with pytest.raises(
        DataError, match=r"none is not there; give the folder or the \.tar\.gz of CIFAR-10's binary version$"
    ):
        cifar10(tmp_path / "none")


@pytest.mark.parametrize("place", ["pixels", "checksum", "end"])
def test_a_damaged_archive_of_the_right_length_is_refused(tmp_path, place):
    """Without compression a damaged pixel changes neither a length nor the tar: only the checksum tells."""
    path = in_archive(tmp_path / "c", binary())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    assert cifar10(path, records=N).count == 5 * N
    whole = path.read_bytes()
    image = binary()["data_batch_2.bin"][100:120]
    if place == "end":
        path.write_bytes(whole[:-4])
    else:
        changed = whole.index(image) if place == "pixels" else len(whole) - 8
        path.write_bytes(whole[:changed] + bytes([whole[changed] ^ 1]) + whole[changed + 1 :])
    with pytest.raises(DataError, match=r"c\.tar\.gz is truncated or no tar file: "):
        cifar10(path, records=N)


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:xz"])
def test_archives_that_are_not_gzipped_are_read(tmp_path, mode):
    with tarfile.open(tmp_path / "c.tar", mode) as archive:
        archive.add(in_folder(tmp_path / "c", binary()), "c")
    assert cifar10(tmp_path / "c.tar", records=N).count == 5 * N


def test_what_follows_the_end_mark_is_bounded(tmp_path, monkeypatch):
    path = in_archive(tmp_path / "c", binary())
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(3 * 10**6)))
    monkeypatch.setattr(cifar10_module, "_MOST", 2 * 10**6)
    with pytest.raises(
        DataError,
        match=r"c\.tar\.gz expands to more than CIFAR-10 has, after its end mark; give the published archive$",
    ):
        cifar10(path, records=N)


def test_an_archive_that_expands_without_end_is_refused_before_it_does(tmp_path):
    info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    info.size = 2**40
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(info.tobuf())
        file.write(io.BytesIO(bytes(10**6)).read())
    with pytest.raises(
        DataError, match=r"expands to more than CIFAR-10 has, at its member 'cifar-10-batches-bin/data_batch_1\.bin'"
    ):
        cifar10(tmp_path / "bomb.tar.gz")
