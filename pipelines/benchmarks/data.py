"""Reading: this reader, plain webdataset and mosaicml-streaming pipelines, and the bare decoder (the limit), by turns,
on the same encoded images; and resuming.

python pipelines/benchmark.py data                         (about ten minutes on two cores)
python pipelines/benchmark.py data --formats png --sizes 64

mosaicml-streaming is no dependency: 0.13 wants numpy < 2.2 and xxhash < 4. It is compared where it can be imported.
"""

import importlib.util
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset as wds
from benchmarks.prepare import photos
from PIL import Image

from cmdist.data.decode import ENCODINGS, RAW
from cmdist.data.images import open_dataset
from cmdist.data.order import Order
from cmdist.data.preparing import preparation
from cmdist.data.preparing.shards import finish, write_shards
from cmdist.data.reader import micro_batches
from cmdist.nets import torchvision_ops
from cmdist.system import cli

BATCH = 64
MOSAIC = importlib.util.find_spec("streaming") is not None
POSITIONS = (0, 1_000_003, 10**9 + 7)  # micro-batches, far beyond the first epoch


def main(arguments: Sequence[str]) -> None:
    """Print tables for the README and benchmarks.md."""
    parser = cli.Parser(prog="benchmark.py data", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--formats", nargs="+", choices=ENCODINGS, default=["webp", "png", "jpg"])
    parser.add_argument("--seconds", type=float, default=0.7, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "\nimages/s with one worker process (by the clock | by its CPU time), best of the rounds; the limit is a "
        "process that only decodes"
    )
    if not MOSAIC:
        print("mosaicml-streaming cannot be imported and is left out: pip install mosaicml-streaming")
    print(
        "| format | size | bare decoder | this reader | of the limit | plain webdataset | reader / webdataset "
        "| mosaicml-streaming | reader / mosaicml |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="cmdist-benchmark-") as folder:
        for size in options.sizes:
            for encoding in options.formats:
                url = f"{folder}/{encoding}-{size}"
                prepare(url, size, encoding)
                print(row(encoding, size, compare(url, encoding, options.seconds, options.rounds)), flush=True)
        resumes(url)


def prepare(url: str, size: int, encoding: str) -> None:
    """Photographs of the size, enough that nothing is kept decoded in memory."""
    source = photos(size, 20_000 if size <= 64 else 1_500)
    division = preparation.divide(source, seed=0, per_shard=source.count // 10, encoding=encoding)
    write_shards(url, source, division, processes=os.cpu_count() or 1)
    finish(url, division)


Rate = tuple[float, float]  # images/s by the clock, and by the CPU time of the process that decodes


def compare(url: str, encoding: str, seconds: float, rounds: int) -> dict[str, Rate]:
    """The best of the rounds, in each of which every way is measured once:
    others on the machine can only make a round slower.
    """
    coded = members(url, encoding)
    ways: dict[str, Callable[[], Rate]] = {
        "limit": lambda: bare(coded, encoding, seconds),
        "reader": lambda: in_worker(lambda: reader(url), seconds),
        "webdataset": lambda: in_worker(lambda: plain(url, encoding), seconds),
    }
    if MOSAIC:
        shuffled = mosaic_dataset(url, encoding)
        ways["mosaicml"] = lambda: in_worker(lambda: mosaic(shuffled), seconds)
    by_way: dict[str, list[Rate]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            by_way[name].append(measure())
    return {name: (max(r[0] for r in rates), max(r[1] for r in rates)) for name, rates in by_way.items()}


def row(encoding: str, size: int, rates: dict[str, Rate]) -> str:
    """One line of the table."""
    limit, ours = rates["limit"], rates["reader"]
    cells = [shown(limit), shown(ours), over(ours, limit)]
    for name in ("webdataset", "mosaicml"):
        cells += [shown(rates[name]), over(ours, rates[name])] if name in rates else ["", ""]
    return f"| {encoding} | {size} | {' | '.join(cells)} |"


def shown(rate: Rate) -> str:
    """A cell of the table."""
    return f"{rate[0]:,.0f} \\| {rate[1]:,.0f}"


def over(one: Rate, other: Rate) -> str:
    """The ratios of two rates, as a cell."""
    return f"{one[0] / other[0]:.2f} \\| {one[1] / other[1]:.2f}"


def members(url: str, encoding: str) -> list[bytes]:
    """The encoded images of the first shard, in memory."""
    with tarfile.open(next(iter(sorted(Path(url).glob("*.tar"))))) as tar:
        files = [tar.extractfile(m) for m in tar.getmembers() if m.name.endswith(encoding)]
        return [file.read() for file in files if file][:2000]


def bare(coded: list[bytes], encoding: str, seconds: float) -> Rate:
    """Bytes in memory -> arrays, in this process, and nothing else."""
    begin, cpu, n, endless = time.perf_counter(), time.process_time(), 0, cycle(coded)
    while time.perf_counter() - begin < seconds:
        for data in islice(endless, 100):
            _ = np.frombuffer(data, np.uint8) if encoding == RAW else np.asarray(Image.open(io.BytesIO(data)))
        n += 100
    return n / (time.perf_counter() - begin), n / (time.process_time() - cpu)


def in_worker(batches: Callable[[], Iterator[Any]], seconds: float) -> Rate:
    """What one worker process of a reader delivers; its start and first batches are not counted."""
    iterator = batches()
    for _ in range(4):
        next(iterator)
    begin, cpu, n = time.perf_counter(), children(), 0
    while time.perf_counter() - begin < seconds:
        n += len(next(iterator))
    rates = n / (time.perf_counter() - begin), n / (children() - cpu)
    iterator.close()  # type: ignore[attr-defined]
    return rates


def children() -> float:
    """CPU seconds of this process's children."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(used.user + used.system for used in times)


def reader(url: str, first: int = 0) -> Iterator[torch.Tensor]:
    """Images as training gets them."""
    data = open_dataset(url, memory=0)
    batches = micro_batches(data, Order(data.counts, seed=0), BATCH, count(first), seed=0, flip=True, workers=1)
    try:
        for batch in batches:
            yield batch.images
    finally:
        batches.close()


def plain(url: str, encoding: str) -> Iterator[torch.Tensor]:
    """As webdataset's documentation shows it:
    shuffled shards, a shuffle buffer, PIL, tensors, batches in the worker.
    """

    def tensors(sample: tuple[Any, int]) -> tuple[torch.Tensor, int]:
        return tensor(np.array(sample[0])), sample[1]

    shards = [str(path) for path in sorted(Path(url).glob("*.tar"))]
    dataset = (
        wds.WebDataset(shards, shardshuffle=100, seed=0)
        .repeat()
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple(encoding, "cls")
    )
    loader = wds.WebLoader(dataset.map(tensors).batched(BATCH), batch_size=None, num_workers=1)
    batches = iter(loader)
    try:
        for images, _ in batches:
            yield images
    finally:
        del batches, loader


def tensor(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """Pixels (H, W, C) uint8, mirrored by chance -> (C, H, W) in [-1, 1]."""
    if np.random.rand() < 0.5:
        pixels = pixels[:, ::-1].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def mosaic_dataset(url: str, encoding: str) -> Any:
    """The same encoded images in mosaicml-streaming's shards beside the others, as its documentation reads them:
    a dataset with its default shuffle, PIL, tensors.
    """
    torchvision_ops.declare_missing()
    from streaming import MDSWriter, StreamingDataset

    data = open_dataset(url, memory=0)
    with MDSWriter(out=f"{url}-mds", columns={"image": "bytes", "label": "int"}) as writer:
        for shard in sorted(Path(url).glob("*.tar")):
            for sample in wds.WebDataset(str(shard), shardshuffle=False):
                writer.write({"image": sample[encoding], "label": int(sample["cls"])})

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(at)
            if encoding == RAW:
                shape = (data.image_size, data.image_size, data.channels)
                return tensor(np.frombuffer(sample["image"], np.uint8).reshape(shape)), sample["label"]
            return tensor(np.array(Image.open(io.BytesIO(sample["image"])))), sample["label"]

    return Images(local=f"{url}-mds", shuffle=True, shuffle_seed=0, batch_size=BATCH)


def mosaic(dataset: Any) -> Iterator[torch.Tensor]:
    """Its batches in one worker, epoch after epoch."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=1, persistent_workers=True)
    try:
        while True:
            for images, _ in loader:
                yield images
    finally:
        del loader


def resumes(url: str) -> None:
    """Seconds to the first batch from positions of this data set,
    and microseconds to look up 64 samples of three million.
    """
    print(
        f"\n| first micro-batch (of {BATCH}) | seconds to it | of position 0 | 64 ids out of 3,000,000, ms "
        "|\n|---|---|---|---|"
    )
    times: dict[int, list[float]] = {position: [] for position in POSITIONS}
    for _ in range(9):
        for position in POSITIONS:
            begin = time.perf_counter()
            batches = reader(url, position)
            next(batches)
            times[position].append(time.perf_counter() - begin)
            batches.close()  # type: ignore[attr-defined]
    for position in POSITIONS:
        order = Order([5000] * 600, seed=0)
        begin = time.perf_counter()
        order.ids(position * BATCH, BATCH)
        lookup = time.perf_counter() - begin
        median = statistics.median(times[position])
        print(f"| {position:,} | {median:.3f} | {median / statistics.median(times[0]):.2f} | {1000 * lookup:.1f} |")
