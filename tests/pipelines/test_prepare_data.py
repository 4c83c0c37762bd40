import contextlib
import functools
import importlib.util
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cmdist.data.images import open_dataset
from cmdist.data.order import Order
from cmdist.data.preparing import prepare
from cmdist.data.preparing.sources.digits import digits
from cmdist.data.reader import micro_batches
from cmdist.errors import ConfigError, DataError
from cmdist.nets.classifier import Classifier, train_classifier
from conftest_data import cropped, png

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
    arguments = ["folder", str(pictures), "--size", "8", "--per-shard", "5"]
    command = [sys.executable, str(SCRIPT), *arguments, "--workers", "3", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("preparing/shard-*.npz"))) < 4:
        assert process.poll() is None
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert len(workers) == 3 and not psutil.wait_procs(workers, timeout=10)[1]
    names = {p.name for p in out.iterdir()}
    assert "preparing.json" in names and "shard-000079.tar" not in names and "index.json" not in names
    with pytest.raises(
        DataError, match=r"^the preparation of .*out was not finished; run pipelines/prepare_data\.py again$"
    ):
        open_dataset(str(out))
    finished = {path.name.replace(".npz", ".tar") for path in out.glob("preparing/shard-*.npz")}
    before = {name: (out / name).stat().st_mtime_ns for name in finished}
    prepare_data.main([*arguments, "--workers", "2", "--out", str(out)])
    assert before == {name: (out / name).stat().st_mtime_ns for name in finished} and 4 <= len(finished) < 80
    prepare_data.main([*arguments, "--workers", "1", "--out", str(whole)])
    assert contents(out) == contents(whole) and len(contents(out)) == 82
    dataset = open_dataset(str(out))
    assert len(dataset) == 400 and dataset.classes == ("0", "1", "2") and dataset.image(0).shape == (8, 8, 3)


def half(prepare_data, pictures, out, *options):
    """The first of two parts."""
    prepare_data.main(
        [
            "folder",
            str(pictures),
            "--size",
            "8",
            "--per-shard",
            "50",
            "--workers",
            "1",
            "--part",
            "1/2",
            *options,
            "--out",
            str(out),
        ]
    )


def test_parts_in_any_order_give_the_bytes_of_one_run(prepare_data, pictures, tmp_path, monkeypatch, capsys):
    arguments = ["folder", str(pictures), "--size", "8", "--per-shard", "50", "--workers", "1", "--out"]
    whole, parts, slurm = tmp_path / "whole", tmp_path / "parts", tmp_path / "slurm"
    prepare_data.main([*arguments, str(whole)])
    for part in ("3/3", "1/3"):
        prepare_data.main([*arguments, str(parts), "--part", part])
    with pytest.raises(
        DataError,
        match=r"^3 of 8 shards of .*parts are not finished, e\.g\. shard-000001\.tar: run the parts that write them$",
    ):
        prepare_data.main([*arguments, str(parts), "--finish"])
    assert not (parts / "index.json").exists()
    prepare_data.main([*arguments, str(parts), "--part", "2/3"])
    assert "part 2 of 3 is there; once all are, the same command with --finish" in capsys.readouterr().out
    (tmp_path / "hidden").mkdir()
    shutil.move(pictures, tmp_path / "hidden")  # the last step reads no image
    prepare_data.main([*arguments, str(parts), "--finish"])
    shutil.move(tmp_path / "hidden" / "pictures", tmp_path)
    for task in (4, 3):
        for name, value in {"ID": task, "COUNT": 2, "MIN": 3, "MAX": 4}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        prepare_data.main([*arguments, str(slurm)])
    prepare_data.main([*arguments, str(slurm), "--finish"])
    assert contents(whole) == contents(parts) == contents(slurm) and len(contents(whole)) == 10
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "abc")
    with pytest.raises(ConfigError, match="^SLURM_ARRAY_TASK_MIN=abc: a number is needed; give --part, or unset it"):
        prepare_data.main([*arguments, str(tmp_path / "new")])
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "5")
    with pytest.raises(ConfigError, match="the Slurm array 3 to 4 has 5 tasks, so some parts would be missing"):
        prepare_data.main([*arguments, str(tmp_path / "new")])


def test_a_half_prepared_folder_refuses_another_source_and_other_options(prepare_data, pictures, tmp_path):
    out = tmp_path / "out"
    half(prepare_data, pictures, out)
    before = contents(out / "preparing")
    with pytest.raises(
        DataError,
        match=r"of another source or with other options \(encoding: 'webp' there, 'png' now; .* repeat it with those",
    ):
        half(prepare_data, pictures, out, "--format", "png")
    with pytest.raises(DataError, match=r"\(per_shard: 50 there, 40 now\)"):
        half(prepare_data, pictures, out, "--per-shard", "40")
    (pictures / "0" / "400.png").write_bytes(png(24))
    with pytest.raises(DataError, match=r"with other options \(count: 400 there, 401 now\)"):
        half(prepare_data, pictures, out)
    (pictures / "0" / "396.png").unlink()
    with pytest.raises(
        DataError, match=r"another source or with other options \(the source's files or labels have changed\)"
    ):
        half(prepare_data, pictures, out)
    assert before == contents(out / "preparing")


def test_finished_shards_are_written_again_only_if_they_are_damaged(prepare_data, pictures, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    half(prepare_data, pictures, out)
    shards = sorted(out.glob("shard-*.tar"))
    assert len(shards) == 4
    times = {path: path.stat().st_mtime_ns for path in shards}
    data = bytearray(shards[1].read_bytes())
    data[3000] ^= 1
    shards[1].write_bytes(data)
    shards[2].unlink()
    record = out / "preparing" / shards[3].name.replace(".tar", ".npz")
    record.write_bytes(record.read_bytes()[:-1])
    half(prepare_data, pictures, out)
    assert shards[0].stat().st_mtime_ns == times[shards[0]]
    assert all(path.stat().st_mtime_ns > times[path] for path in shards[1:])
    for target in (out, whole):
        prepare_data.main(
            ["folder", str(pictures), "--size", "8", "--per-shard", "50", "--workers", "1", "--out", str(target)]
        )
    assert contents(out) == contents(whole)


def spoil(pictures, *names):
    for name in names:
        path = pictures / name
        path.write_bytes(path.read_bytes()[:300])


def test_bad_images_are_left_out_named_and_limited(prepare_data, pictures, tmp_path, capsys):
    spoil(pictures, "0/3.png", "1/100.png", "2/398.png")
    arguments = ["folder", str(pictures), "--size", "8", "--per-shard", "50"]
    with pytest.raises(
        DataError,
        match=r"png is not a readable image \(.*\) "
        r"\(1 unreadable images by now, 0 allowed: see .*/unreadable\.txt, and",
    ):
        prepare_data.main([*arguments, "--workers", "2", "--out", str(tmp_path / "strict")])
    assert (tmp_path / "strict" / "unreadable.txt").read_text().count("\n") == 1
    with pytest.raises(DataError, match=r"3 unreadable images by now, 2 allowed"):
        prepare_data.main(
            [*arguments, "--workers", "1", "--max-bad", "2", "--out", str(tmp_path / "strict")]
        )  # more may be allowed later
    assert (tmp_path / "strict" / "unreadable.txt").read_text().count("is not a readable image") == 3
    assert not (tmp_path / "strict" / "index.json").exists()
    outs = [tmp_path / "strict", tmp_path / "two", tmp_path / "parts"]
    prepare_data.main([*arguments, "--workers", "1", "--max-bad", "3", "--out", str(outs[0])])
    assert "397 images of 8x8x3 in 8 shards, 3 classes; unreadable images were left out: " in capsys.readouterr().out
    prepare_data.main([*arguments, "--workers", "2", "--max-bad", "3", "--out", str(outs[1])])
    for part in ("1/2", "2/2"):
        prepare_data.main([*arguments, "--workers", "1", "--max-bad", "3", "--part", part, "--out", str(outs[2])])
    with pytest.raises(DataError, match=r"\(3 unreadable images by now, 2 allowed"):
        prepare_data.main([*arguments, "--max-bad", "2", "--finish", "--out", str(outs[2])])
    assert (outs[2] / "unreadable.txt").read_text().count("is not a readable image") == 3
    prepare_data.main([*arguments, "--max-bad", "3", "--finish", "--out", str(outs[2])])
    assert contents(outs[0]) == contents(outs[1]) == contents(outs[2])
    report = (outs[0] / "unreadable.txt").read_text().splitlines()
    files = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    assert [line.partition("\t")[0] for line in report] == [
        str(files.index(name)) for name in ("0/3.png", "1/100.png", "2/398.png")
    ]
    assert all(name in line for name, line in zip(("0/3.png", "1/100.png", "2/398.png"), report, strict=True))
    dataset = open_dataset(str(outs[0]))
    assert len(dataset) == 397 and sum(dataset.counts) == 397 and set(dataset.counts) <= {50, 49, 48, 47}
    keys = {int(dataset.key(i)) for i in range(397)}
    assert keys == set(range(400)) - {int(line.partition("\t")[0]) for line in report}
    whole = [cropped((pictures / files[int(dataset.key(i))]).read_bytes(), 8) for i in range(397)]
    assert all(np.array_equal(dataset.image(i), image) for i, image in enumerate(whole))


@pytest.mark.parametrize("encoding", ["png", "webp", "raw", "jpg"])
def test_every_format_is_read_by_the_reader_and_indexed_again(prepare_data, pictures, tmp_path, encoding):
    out = tmp_path / "out"
    prepare_data.main(
        ["folder", str(pictures), "--size", "8", "--format", encoding, "--workers", "1", "--out", str(out)]
    )
    dataset = open_dataset(str(out))
    files = sorted(pictures.rglob("*.png"), key=lambda path: path.parts)
    for i in range(0, 400, 37):
        want = cropped(files[int(dataset.key(i))].read_bytes(), 8)
        assert (
            np.array_equal(dataset.image(i), want)
            if encoding != "jpg"
            else np.abs(dataset.image(i).astype(int) - want).mean() < 8
        )
    assert dataset.labels([0]).item() == int(files[int(dataset.key(0))].parent.name)
    assert ("JPEG of quality 95 (lossy)" in dataset.index["transform"]) == (encoding == "jpg")
    order = Order(dataset.counts, seed=0)
    with contextlib.closing(
        micro_batches(open_dataset(str(out), memory=0), order, 8, iter([3]), seed=0, workers=1)
    ) as batches:
        batch = next(batches)
    assert torch.equal(batch.images, dataset.images(batch.ids))
    want = dataset.images(range(400))
    (out / "index.json").unlink()
    prepare_data.main(["shards", str(out)])
    assert torch.equal(open_dataset(str(out)).images(range(400)), want)


def test_one_shuffle_over_all_images_that_every_source_shares(prepare_data, pictures, tmp_path):
    prepare_data.main(
        ["folder", str(pictures), "--size", "8", "--per-shard", "50", "--workers", "2", "--out", str(tmp_path / "a")]
    )
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in pictures.rglob("*.png"):
            archive.write(path, path.relative_to(pictures))
    prepare_data.main(
        [
            "zip",
            str(tmp_path / "pictures.zip"),
            "--size",
            "8",
            "--per-shard",
            "50",
            "--workers",
            "2",
            "--out",
            str(tmp_path / "b"),
        ]
    )
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name: data for name, data in a.items() if name != "index.json"} == {
        name: data for name, data in b.items() if name != "index.json"
    }
    dataset = open_dataset(str(tmp_path / "a"))
    first = sorted(int(dataset.key(i)) for i in range(50))
    assert first[0] < 40 and first[-1] > 360  # a shard draws from everywhere


def test_a_folder_that_is_not_ours_is_left_alone(prepare_data, tmp_path):
    (tmp_path / "shard-000000.tar").write_text("somebody's")
    with pytest.raises(DataError, match="is not empty and holds no prepared data set; give another --out"):
        prepare_data.main(["digits", "--out", str(tmp_path)])
    assert contents(tmp_path) == {"shard-000000.tar": b"somebody's"}


def test_any_file_name_fits_into_the_report(prepare_data, pictures, tmp_path):
    names = ["0/\udcff.png", "1/a\nb.png", "2/\tc.png"]  # not UTF-8; a line and a column of its own
    for name in names:
        (pictures / name).write_bytes(b"")
    prepare_data.main(
        ["folder", str(pictures), "--size", "8", "--max-bad", "3", "--workers", "1", "--out", str(tmp_path / "out")]
    )
    report = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert len(report) == 3 and all(line.count("\t") == 1 for line in report)
    assert [r"0/\udcff.png" in report[0], r"1/a\nb.png" in report[1], r"2/\tc.png" in report[2]] == [True] * 3


def test_parts_that_are_refused_add_to_one_report(prepare_data, pictures, tmp_path):
    spoil(pictures, *(str(path.relative_to(pictures)) for path in pictures.rglob("*.png")))
    arguments = [
        "folder",
        str(pictures),
        "--size",
        "8",
        "--per-shard",
        "50",
        "--workers",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--part",
    ]
    named = []
    for part in ("1/2", "2/2", "1/2"):
        with pytest.raises(
            DataError, match=r"unreadable images by now, 0 allowed: see .*/unreadable\.txt, and --max-bad\)$"
        ) as caught:
            prepare_data.main([*arguments, part])
        named.append(str(caught.value).partition(" is not")[0])
    report = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert all(sum(f"\t{name} " in line for line in report) == 1 for name in set(named)) and len(report) == len(
        set(named)
    )
    assert report == sorted(report, key=lambda line: int(line.partition("\t")[0]))


def test_a_shard_without_a_readable_image_is_tried_again(prepare_data, pictures, tmp_path):
    whole = {path: path.read_bytes() for path in pictures.rglob("*.png")}
    spoil(pictures, *(str(path.relative_to(pictures)) for path in whole))
    for path in whole:  # of the sizes that they will have
        path.write_bytes(path.read_bytes().ljust(len(whole[path]), b"-"))
    arguments = [
        "folder",
        str(pictures),
        "--size",
        "8",
        "--per-shard",
        "50",
        "--workers",
        "2",
        "--max-bad",
        "400",
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(DataError, match="none of the 400 images of pictures could be read"):
        prepare_data.main(arguments)
    for path, data in whole.items():
        path.write_bytes(data)
    prepare_data.main(arguments)
    assert len(open_dataset(str(tmp_path / "o"))) == 400 and not (tmp_path / "o" / "unreadable.txt").exists()


def test_shards_without_a_readable_image_are_left_out(prepare_data, pictures, tmp_path):
    arguments = [
        "folder",
        str(pictures),
        "--size",
        "8",
        "--per-shard",
        "1",
        "--workers",
        "2",
        "--max-bad",
        "400",
        "--out",
    ]
    spoil(pictures, "0/3.png", "2/398.png")
    prepare_data.main([*arguments, str(tmp_path / "out")])
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.counts == (1,) * 398 and len(list((tmp_path / "out").glob("*.tar"))) == 398
    assert dataset.labels(range(398)).bincount().tolist() == [133, 133, 132]
    spoil(pictures, *(str(path.relative_to(pictures)) for path in pictures.rglob("*.png")))
    for _ in range(2):  # what the records of finished shards say is the same
        with pytest.raises(
            DataError, match=r"^none of the 400 images of pictures could be read: see .*/unreadable\.txt$"
        ):
            prepare_data.main([*arguments, str(tmp_path / "none")])
    assert not (tmp_path / "none" / "index.json").exists()
    assert len((tmp_path / "none" / "unreadable.txt").read_text().splitlines()) == 400


def test_a_report_goes_once_nothing_is_bad(prepare_data, pictures, tmp_path):
    arguments = ["folder", str(pictures), "--size", "8", "--workers", "1", "--out", str(tmp_path / "out")]
    whole, other = ((pictures / name).read_bytes() for name in ("0/3.png", "1/100.png"))
    spoil(pictures, "0/3.png")
    with pytest.raises(DataError, match="1 unreadable images by now"):
        prepare_data.main(arguments)
    (pictures / "0" / "3.png").write_bytes(whole)
    spoil(pictures, "1/100.png")
    with pytest.raises(DataError, match=r"1/100\.png is not a readable image .*1 unreadable images by now"):
        prepare_data.main(arguments)
    assert [line.count("1/100.png") for line in (tmp_path / "out" / "unreadable.txt").read_text().splitlines()] == [1]
    (pictures / "1" / "100.png").write_bytes(other)
    prepare_data.main(arguments)
    assert not (tmp_path / "out" / "unreadable.txt").exists() and len(open_dataset(str(tmp_path / "out"))) == 400


def test_a_finished_folder_is_looked_at_before_it_is_called_prepared(prepare_data, pictures, tmp_path):
    out = tmp_path / "out"
    arguments = ["folder", str(pictures), "--size", "8", "--per-shard", "200", "--workers", "1", "--out", str(out)]
    prepare_data.main(arguments)
    shard, index = out / "shard-000001.tar", out / "index.json"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(
        DataError,
        match=r"out was prepared, but is damaged: shard .*000001\.tar is truncated: .*; restore it, or remove",
    ):
        prepare_data.main(arguments)
    shard.unlink()
    with pytest.raises(
        DataError,
        match=r"is damaged: shard .*000001\.tar is missing; restore it, or remove the folder and prepare it again$",
    ):
        prepare_data.main(arguments)
    shard.write_bytes(whole)
    prepare_data.main(arguments)
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        with pytest.raises(DataError, match=r"out was prepared, but is damaged: .*index\.json is "):
            prepare_data.main(arguments)


@pytest.mark.parametrize("faster", ["before the shards", "before the index"])
def test_the_same_command_twice_at_once_does_no_harm(prepare_data, pictures, tmp_path, monkeypatch, capsys, faster):
    arguments = [
        "folder",
        str(pictures),
        "--size",
        "8",
        "--per-shard",
        "50",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    write_shards = prepare.write_shards

    def slow(*positional, **named):  # the other one comes to its end first
        monkeypatch.setattr(prepare, "write_shards", write_shards)
        if faster == "before the shards":
            prepare_data.main(arguments)
        write_shards(*positional, **named)
        if faster == "before the index":
            prepare_data.main(arguments)

    monkeypatch.setattr(prepare, "write_shards", slow)
    prepare_data.main(arguments)
    assert ("is prepared already" in capsys.readouterr().out) == (faster == "before the index")
    assert not (tmp_path / "out" / "preparing").exists() and len(open_dataset(str(tmp_path / "out"))) == 400


def test_an_unreadable_picture_stops_with_its_name_and_leaves_no_index(prepare_data, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(6))
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    arguments = ["folder", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"b\.png is not a readable image"):
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
        (
            ["folder", "x", "--out", "y", "--part", "0/3"],
            r"--part 0/3: K/N with K from 1 to N is needed, e\.g\. --part 3/8",
        ),
        (["folder", "x", "--out", "y", "--part", "4/3"], "--part 4/3: K/N with K from 1 to N is needed"),
        (
            ["folder", "x", "--out", "y", "--part", "1/3", "--finish"],
            "--finish comes after all parts: give it or --part",
        ),
        (["folder", "x", "--out", "y", "--enlarge"], "--enlarge needs --size"),
        (
            ["lsun", "x", "--out", "y", "--workers", "0"],
            "--workers must be 1 or more, at most 1024",
        ),
        (["lsun", "x", "--out", "y", "--format", "gif"], "invalid choice: 'gif'"),
        (["lsun", "x", "--out", ""], "argument --out: it is empty; a path is needed"),
        (["lsun", " ", "--out", "y"], "argument path: it is empty; a path is needed"),
        (["shards", ""], "argument url: it is empty; a path is needed"),
        (
            ["lsun", "x", "--out", "memory://y", "--workers", "2"],
            "memory is shared by no processes and ends with this one; it needs --workers 1",
        ),
        (["lsun", "x", "--out", "y", "--size", "10001"], "--size 10001: at most 10000 pixels are allowed"),
        (["imagenet", "x", "--out", "y", "--synsets", "0"], "--synsets and --batches must be 1 or more"),
        (["imagenet64", "x", "--out", "y", "--batches", "-1"], "--synsets and --batches must be 1 or more"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(prepare_data, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        prepare_data.main(arguments)


@pytest.mark.parametrize("place", ["a file", "below a file", "not to be written to"])
def test_an_out_that_cannot_be_is_one_sentence(pictures, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    out = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out", "not to be written to": "/proc/out"}[
        place
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "folder", str(pictures), "--out", str(out)], capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("pictures -> ")]
    assert (
        done.returncode == 1
        and len(lines) == 1
        and lines[0].startswith(f"error: {str(out)[:5]}")
        and "--debug" not in lines[0]
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_have_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "folder", str(tmp_path), "--out", str(tmp_path / "o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
