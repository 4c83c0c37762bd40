import functools
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_data import png
from PIL import Image
from safetensors.torch import load_file

from cmdist.data.images import open_dataset
from cmdist.data.sources.digits import digits
from cmdist.errors import ConfigError, DataError
from cmdist.nets.classifier import Classifier, train_classifier

SCRIPT = Path(__file__).parents[2] / "pipelines" / "prepare_data.py"


@pytest.fixture
def prepare_data():
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path):
    for i in range(400):
        path = tmp_path / "pictures" / f"{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_digits_with_the_classifier_for_evaluation(prepare_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_data, "train_classifier", functools.partial(train_classifier, epochs=2))
    out = tmp_path / "digits"
    prepare_data.main(["digits", "--out", str(out)])
    dataset = open_dataset(str(out))
    assert (len(dataset), dataset.image_size, dataset.channels, len(dataset.classes)) == (1797, 8, 1, 10)
    classifier = Classifier.from_state_dict(load_file(out / dataset.index["extractor"]["file"]))
    source = digits()
    images = torch.from_numpy(np.stack([source.image(i) for i in range(1797)]).transpose(0, 3, 1, 2).copy())
    want, accuracy = train_classifier(images, torch.from_numpy(source.labels), seed=0, epochs=2)
    assert dataset.index["extractor"]["accuracy"] == accuracy
    assert all(torch.equal(got, want.state_dict()[name]) for name, got in classifier.state_dict().items())
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    capsys.readouterr()
    prepare_data.main(["digits", "--out", str(out)])
    assert "is prepared already" in capsys.readouterr().out
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    with pytest.raises(DataError, match=r"was prepared with other arguments .* give another --out, or remove it"):
        prepare_data.main(["digits", "--out", str(out), "--per-shard", "50"])


def test_a_kill_leaves_nothing_that_looks_finished_and_a_rerun_gives_the_same_bytes(prepare_data, pictures, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["folder", str(pictures), "--size", "8", "--per-shard", "5", "--out"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "shard-000004.tar").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    names = {p.name for p in out.iterdir()}
    assert "preparing.json" in names and "shard-000079.tar" not in names and "index.json" not in names
    with pytest.raises(DataError, match=r"^the preparation of .*out was not finished; run pipelines/prepare_data\.py again$"):
        open_dataset(str(out))
    interrupted = tmp_path / "interrupted"
    shutil.copytree(out, interrupted)
    prepare_data.main([*arguments, str(out)])
    prepare_data.main([*arguments, str(whole)])
    assert contents(out) == contents(whole) and len(contents(out)) == 82
    other = ["folder", str(pictures), "--size", "8", "--per-shard", "300", "--out"]
    prepare_data.main([*other, str(interrupted)])  # with other arguments: nothing of the first attempt stays
    assert [p.name for p in sorted(interrupted.iterdir())] == ["index.json", "index.npz", "shard-000000.tar", "shard-000001.tar"]
    dataset = open_dataset(str(out))
    assert len(dataset) == 400 and dataset.classes == ("0", "1", "2") and dataset.image(0).shape == (8, 8, 3)


def test_a_folder_that_is_not_ours_is_left_alone(prepare_data, tmp_path):
    (tmp_path / "shard-000000.tar").write_text("somebody's")
    with pytest.raises(DataError, match="is not empty and holds no prepared data set; give another --out"):
        prepare_data.main(["digits", "--out", str(tmp_path)])
    assert contents(tmp_path) == {"shard-000000.tar": b"somebody's"}


def test_an_unreadable_picture_stops_with_its_name_and_leaves_no_index(prepare_data, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(6))
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    arguments = ["folder", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"b\.png cannot be read as an image"):
        prepare_data.main(arguments)
    assert not (tmp_path / "out" / "index.json").exists()
    (tmp_path / "in" / "b.png").write_bytes(png(6))
    prepare_data.main(arguments)
    assert len(open_dataset(str(tmp_path / "out"))) == 2


def test_shards_are_indexed_in_place(prepare_data, pictures, tmp_path):
    out = tmp_path / "out"
    prepare_data.main(["folder", str(pictures), "--size", "8", "--out", str(out)])
    want = open_dataset(str(out))
    (out / "index.json").unlink()
    prepare_data.main(["shards", str(out)])
    assert torch.equal(open_dataset(str(out)).images(range(400)), want.images(range(400)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digit"], "invalid choice: 'digit'"),
        (["digits"], "the following arguments are required: --out"),
        (["digits", "--out", "x", "--size", "3"], "unrecognized arguments: --size 3"),
        (["folder", "x", "--out", "y", "--size", "0"], "--per-shard and --size must be 1 or more"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(prepare_data, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        prepare_data.main(arguments)


def test_errors_have_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "folder", str(tmp_path), "--out", str(tmp_path / "o")], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
