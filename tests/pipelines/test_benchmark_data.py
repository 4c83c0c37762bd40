"""The column of the reading benchmark for mosaicml-streaming, with a stand-in of its writer and data set."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cmdist.data.preparing.shards import write_dataset
from cmdist.data.preparing.sources.base import Source
from ranks import pipeline

STREAMING = """
import os, pickle
import torch

class MDSWriter:
    def __init__(self, out, columns):
        assert columns == {"image": "bytes", "label": "int"}
        self.out, self.samples = out, []
    def __enter__(self):
        return self
    def write(self, sample):
        self.samples.append(sample)
    def __exit__(self, *error):
        os.makedirs(self.out)
        with open(f"{self.out}/samples", "wb") as file:
            pickle.dump(self.samples, file)

class StreamingDataset(torch.utils.data.Dataset):
    def __init__(self, local, shuffle, shuffle_seed, batch_size):
        with open(f"{local}/samples", "rb") as file:
            self.samples = pickle.load(file)
    def __len__(self):
        return len(self.samples)
    def __getitem__(self, at):
        return self.samples[at]
"""


def test_the_same_images_come_out_of_both_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline("benchmark")
    benchmark = importlib.import_module("benchmarks.data")
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in/streaming.py").write_text(STREAMING)
    monkeypatch.syspath_prepend(tmp_path / "stand-in")
    url, draw = str(tmp_path / "data"), np.random.default_rng(0)
    images = draw.integers(0, 256, (300, 8, 8, 3), np.uint8)
    source = Source("made up", 8, 3, "none", 300, images.__getitem__, np.arange(300) % 10, tuple("0123456789"))
    write_dataset(url, source)
    batches = benchmark.mosaic(benchmark.mosaic_dataset(url, "png"))
    theirs = torch.cat([next(batches) for _ in range(5)])  # an epoch
    batches.close()
    ours = torch.cat([batch for batch, _ in zip(benchmark.reader(url), range(5), strict=False)])
    assert theirs.shape == (300, 3, 8, 8) and ours.dtype == torch.uint8
    theirs = ((theirs + 1) * 127.5).round().to(torch.uint8)
    assert {image.numpy().tobytes() for image in ours} <= {
        image.numpy().tobytes() for image in torch.cat([theirs, theirs.flip(3)])
    }


def test_the_table_has_its_column_where_it_can_be_imported() -> None:
    pipeline("benchmark")
    benchmark = importlib.import_module("benchmarks.data")
    rates = {"limit": (1000.0, 1100.0), "reader": (900.0, 1000.0), "webdataset": (450.0, 500.0)}
    without, with_it = (benchmark.row("png", 64, each) for each in (rates, rates | {"mosaicml": (300.0, 250.0)}))
    assert without.endswith("|  |  |") and "3.00" in with_it and "4.00" in with_it
