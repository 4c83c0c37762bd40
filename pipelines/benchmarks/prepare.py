"""Preparation: size and speed of the formats of images in shards, speed of a source, and many images prepared and read.

python pipelines/benchmark.py prepare                      (200,000 images of 64x64, about ten minutes on two cores)
python pipelines/benchmark.py prepare --images 5000 --format png --workers 1
"""

import contextlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from cmdist import seeding
from cmdist.data.decode import ENCODINGS, decode, encode
from cmdist.data.images import open_dataset
from cmdist.data.order import Order
from cmdist.data.preparing import preparation
from cmdist.data.preparing.shards import finish, write_shards
from cmdist.data.preparing.sources.base import Source
from cmdist.data.preparing.sources.pictures import square
from cmdist.data.reader import micro_batches
from cmdist.system import cli

BATCH = 128


def main(arguments: Sequence[str]) -> None:
    """Print tables for the README and benchmarks.md."""
    parser = cli.Parser(prog="benchmark.py prepare", description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--format", choices=ENCODINGS, default="webp")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    formats()
    sources()
    many(options.images, options.format, options.workers)


def photos(size: int, count: int) -> Source:
    """Image i: a random square of one of scikit-learn's two photographs, at `size` pixels."""
    pictures = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640x427

    def image(i: int) -> NDArray[np.uint8]:
        draw = seeding.numpy_generator(0, "photo", i)
        side = float(draw.uniform(min(size, 427), 427))
        x, y = draw.random(2) * (640 - side, 427 - side)
        return np.asarray(pictures[i % 2].resize((size, size), Image.Resampling.BICUBIC, (x, y, x + side, y + side)))

    return Source(
        "photos",
        size,
        3,
        "random squares of two photographs",
        count,
        image,
        np.arange(count) % 1000,
        tuple(map(str, range(1000))),
    )


def formats() -> None:
    """CPU time of one process."""
    print(
        "\n| format | size | bytes an image | of raw | encode, images/s | decode, images/s |\n|---|---|---|---|---|---|"
    )
    for size, count in ((64, 1000), (256, 100)):
        source = photos(size, count)
        images = [source.image(i) for i in range(count)]
        for encoding in ENCODINGS:
            coded, encoding_rate = timed(lambda pixels, e=encoding: encode(pixels, e), images)  # type: ignore[misc]
            _, decoding_rate = timed(lambda data, e=encoding, s=size: decode(data, s, 3, e == "raw"), coded)  # type: ignore[misc]
            mean = np.mean([len(data) for data in coded])
            print(
                f"| {encoding} | {size} | {mean:,.0f} | {mean / (3 * size**2):.0%} | {encoding_rate:,.0f} | "
                f"{decoding_rate:,.0f} |",
                flush=True,
            )


def timed(work: Callable, items: list) -> tuple[list, float]:  # type: ignore[type-arg]
    """Results, and items per second of CPU time: the better of two runs."""
    rates = []
    for _ in range(2):
        start = time.process_time()
        results = [work(item) for item in items]
        rates.append(len(items) / (time.process_time() - start))
    return results, max(rates)


def sources() -> None:
    """Decoding and cropping as ADM does, one process."""
    print("\n| source | cropped to | images/s |\n|---|---|---|")
    large = [Image.fromarray(photo).resize((500, 375)) for photo in load_sample_images().images]
    beds = [Image.fromarray(photo).resize((384, 256)) for photo in load_sample_images().images]
    for name, pictures, kind, size in (("JPEG 500x375", large, "JPEG", 64), ("WebP 384x256", beds, "WEBP", 256)):
        _, rate = timed(lambda data, s=size: square(data, "", s, True, False), [saved(p, kind) for p in pictures] * 50)  # type: ignore[misc]
        print(f"| {name} | {size} | {rate:,.0f} |", flush=True)


def saved(picture: Image.Image, kind: str) -> bytes:
    """As in the published files."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=75 if kind == "WEBP" else 95)
    return buffer.getvalue()


def many(count: int, encoding: str, workers: int) -> None:
    """Prepare and read `count` images."""
    print(
        f"\n{count:,} images of 64x64 as {encoding}, {workers} processes, load of the machine before: "
        f"{os.getloadavg()[0]:.1f}",
        flush=True,
    )
    source = photos(64, count)
    with tempfile.TemporaryDirectory(prefix="cmdist-benchmark-") as folder:
        division = preparation.divide(source, encoding=encoding)
        with measured("prepared", count):
            write_shards(folder, source, division, processes=workers)
        with measured("checked again, as a rerun does", count):
            write_shards(folder, source, division, processes=workers)
        with measured("index written", count):
            finish(folder, division)
        print(f"bytes: {sum(path.stat().st_size for path in Path(folder).rglob('*') if path.is_file()):,}", flush=True)
        dataset = open_dataset(folder, memory=0)
        order, batches = Order(dataset.counts, seed=0), count // BATCH
        for processes in (0, workers):
            with measured(f"read, {processes or 'no'} reading processes", batches * BATCH):
                for _ in micro_batches(
                    dataset, order, BATCH, iter(range(batches)), seed=0, flip=True, workers=processes
                ):
                    pass


@contextlib.contextmanager
def measured(what: str, images: int) -> Iterator[None]:
    """Print time, rate, and the highest memory of this process and its children together,
    shared pages counted once (PSS).
    """
    highest, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            total = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (me, *me.children(recursive=True)):
                    total += process.memory_full_info().pss
            highest[0] = max(highest[0], total)

    me = psutil.Process()
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        over.set()
        watcher.join()
    print(
        f"{what}: {seconds:.1f} s, {images / seconds:,.0f} images/s, at most {highest[0] / 2**20:.0f} MiB", flush=True
    )
