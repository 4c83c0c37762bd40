"""Features of images for FID: this path on all ranks, and clean-fid's own path through a folder,
on the same images in one run.

python pipelines/benchmark.py evaluate                                  (some minutes on two cores)
python pipelines/benchmark.py evaluate --inception inception-2015-12-05.pt

Generation is left out: the images are in memory when the clock starts. clean-fid takes them from a folder of PNG files,
which its users write with Pillow; its figure is given without that and with it (by one process for each core). Two
networks: Inception's architecture (with random weights unless its file is given), and one that costs next to nothing,
which leaves what is around the network: decoding, resizing, handing over, moments.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.prepare import photos
from numpy.typing import NDArray
from PIL import Image

from cmdist.evaluation import extractors, measurement, references
from cmdist.evaluation.generation import Task
from cmdist.evaluation.metrics.frechet import Moments, Statistics
from cmdist.evaluation.references import Reference
from cmdist.system import cli, distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import inception as stand_in  # tests/inception.py: the architecture without its weights

SPACES = {"clean": "fid", "legacy_tensorflow": "fid_legacy"}


def main(arguments: Sequence[str]) -> None:
    """Print tables for benchmarks.md."""
    parser = cli.Parser(
        prog="benchmark.py evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inception", metavar="FILE", help="the published weights")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 256], help="of images; Inception takes the first (default 64 256)"
    )
    parser.add_argument(
        "--n", type=int, default=1024, help="images for the network that costs nothing (default %(default)s)"
    )
    parser.add_argument(
        "--n-inception", type=int, default=256, help="images for Inception on CPU cores (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--part", nargs=6, help=argparse.SUPPRESS
    )  # one rank of ours: images, how many, weights, space, metrics, scratch
    options = parser.parse_args(arguments)
    if options.part:
        ours(*options.part)
        return
    ranks = torch.cuda.device_count() or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="cmdist-benchmark-") as scratch:
        folder = Path(scratch)
        cheap = stand_in.write(folder / "cheap.pt")
        full = options.inception or stand_in.write(folder / "full.pt", stand_in.Full())
        devices = "GPUs" if torch.cuda.is_available() else "cores"
        print(f"\n{ranks} {devices}; images/s, best of {options.rounds}")
        print(
            "| network | size | resizing | images | clean-fid, of a folder | and with writing it | this path | ratio | "
            "with writing |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        few = options.n if torch.cuda.is_available() else options.n_inception
        rows = [("next to nothing", size, cheap, options.n) for size in options.sizes] + [
            ("Inception", options.sizes[0], full, few)
        ]
        for title, size, weights, n in rows:
            array = images(folder, size, n)
            for mode, space in SPACES.items():
                rates: dict[str, list[float]] = {"writing": [], "clean-fid": [], "ours": []}
                for _ in range(options.rounds):
                    files, seconds = written(array)
                    rates["writing"].append(seconds)
                    rates["clean-fid"].append(clean_fid(files, weights, mode, ranks))
                    rates["ours"].append(run(ranks, array, n, weights, space, space, folder)["rate"])
                theirs, mine = max(rates["clean-fid"]), max(rates["ours"])
                both = n / (n / theirs + min(rates["writing"]))
                print(
                    f"| {title} | {size} | {mode} | {n:,} | {theirs:.1f} | {both:.1f} | {mine:.1f} | "
                    f"{mine / theirs:.2f} "
                    f"| {mine / both:.2f} |",
                    flush=True,
                )
        print("\n| images | metrics | peak memory of rank 0, MiB |\n|---|---|---|")
        array = images(folder, 32, 1024)  # again and again
        for n in (4096, 16384, 32768):
            for metrics in ("fid_legacy", "fid_legacy,is"):
                print(
                    f"| {n:,} | {metrics.replace(',', ', ')} | "
                    f"{run(ranks, array, n, cheap, 'fid_legacy', metrics, folder)['peak']:.0f} |",
                    flush=True,
                )


def images(folder: Path, size: int, n: int) -> Path:
    """Photographs as one array (n,size,size,3) in a file."""
    source = photos(size, n)
    np.save(folder / f"{size}-{n}.npy", np.stack([source.image(i) for i in range(n)]))
    return folder / f"{size}-{n}.npy"


def written(array: Path) -> tuple[list[str], float]:
    """The files of clean-fid's folder, and the seconds that all cores together take to write them."""
    images = np.load(array)
    names = [str(array.with_suffix("") / f"{i:06d}.png") for i in range(len(images))]
    array.with_suffix("").mkdir(exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as processes:
        begin = time.perf_counter()
        list(processes.map(save, names, images, chunksize=16))
    return names, time.perf_counter() - begin


def save(name: str, image: NDArray[np.uint8]) -> None:
    """As Pillow does it by default."""
    Image.fromarray(image).save(name)


def clean_fid(files: list[str], weights: str, mode: str, workers: int) -> float:
    """Images/s of clean-fid's features of files, with one resizing process and one thread of the network for each core.

    Its batches of 32 are what it takes by default.
    """
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inception-2015-12-05.pt").symlink_to(Path(weights).absolute())
        net = InceptionV3W(folder, download=False, resize_inside=mode != "clean").eval().to(device)
    begin = time.perf_counter()
    features = get_files_features(
        files, net, num_workers=workers, batch_size=32, device=device, mode=mode, verbose=False
    )
    np.cov(features, rowvar=False)
    return len(files) / (time.perf_counter() - begin)


def run(ranks: int, array: Path, n: int, weights: str, space: str, metrics: str, folder: Path) -> dict[str, Any]:
    """What rank 0 says of a measurement by `ranks` processes."""
    scratch = tempfile.mkdtemp(dir=folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    part = ["--part", str(array), str(n), weights, space, metrics, scratch]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, sys.argv[0], "evaluate", *part], check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads(Path(scratch, "said.json").read_text())  # type: ignore[no-any-return]


def ours(array: str, count: str, weights: str, space: str, metrics: str, scratch: str) -> None:
    """One rank: a sampler that finds the images ready, and everything else as in evaluation."""
    world = distributed.start()
    torch.set_num_threads(1)
    ready = torch.from_numpy(np.load(array, mmap_mode="c")).permute(0, 3, 1, 2)
    files = extractors.Files(weights, trusted=[extractors.digest(Path(weights).read_bytes())])
    (extractor,) = extractors.load([space], None, files, world.device)

    def sample(noises: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        return (
            ready[labels.cpu() % len(ready)].float() - 127.75
        ) / 127.5  # which the rounding of evaluation takes back to what it was

    n, size = int(count), ready.shape[2]
    moments = Moments(extractor.dimensions)
    torch.manual_seed(0)
    some = torch.rand(256, extractor.dimensions)
    moments.add(some)
    statistics = moments.statistics()
    real = Reference(Statistics(0, statistics.mean, statistics.covariance), some, references.describe(extractor))
    extractor.features(ready[: extractor.batch])  # as clean-fid's network, it is loaded and warm
    distributed.gather(None, world.control)
    begin = time.perf_counter()
    task = Task(range(n), (3, size, size), n, 1)
    collected = measurement.collect(task, sample, [(extractor, metrics.split(","), real)], scratch, world)
    if collected is not None:
        for each in collected.spaces:
            each.statistics()
        end = time.perf_counter()  # clean-fid's clock stops at the covariance, too
        peak = int(
            next(
                line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM")
            )
        )
        Path(scratch, "said.json").write_text(json.dumps({"rate": n / (end - begin), "peak": peak / 1024}))
    distributed.stop(world)
