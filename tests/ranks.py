"""Several ranks for a test: real processes with their own process group, forked from a server that has the heavy
imports already.
"""

import contextlib
import ctypes
import gc
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "deepspeed",
        "cmdist.build",
        "cmdist.train.engine",
        "cmdist.tracking.mlflow",
        "cmdist.evaluation.measurement",
        "s3fs",
    ]
)


_PORTS = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """Each time another one, and other ones for each of four test processes, all below those that connections take for
    themselves.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    while True:
        port = 30_000 + 690 * worker + next(_PORTS) % 690
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def pipeline(name: str) -> Any:
    """A script of pipelines/ as a module."""
    spec = importlib.util.spec_from_file_location(f"pipeline_{name}", REPOSITORY / "pipelines" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if str(REPOSITORY / "pipelines") not in sys.path:  # as when it is run
        sys.path.append(str(REPOSITORY / "pipelines"))
    spec.loader.exec_module(module)
    return module


def run_pipeline(name: str, arguments: Sequence[str]) -> None:
    """What `python pipelines/NAME.py ARGUMENTS` does."""
    from cmdist.system import cli

    sys.argv = [f"{name}.py", *arguments]
    cli.run(pipeline(name).main)


def _child(
    rank: int,
    size: int,
    port: int,
    log: str,
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()  # the server of the forks has that of the first test
    os.environ.update({name: value for name, value in environment.items() if not name.startswith("SLURM_")})
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # several ranks could not share one GPU
    import torch

    gc.freeze()  # what the server imported
    torch.set_num_threads(1)
    function(*arguments)
    sys.stdout.flush()


class Ranks:
    """`size` processes that run `function(*arguments)`, each with the variables of a launcher; their output goes to
    `log`.
    """

    def __init__(self, size: int, log: Path, function: Callable[..., None], *arguments: Any) -> None:
        self.log = log
        port = free_port()
        self.processes = [
            CONTEXT.Process(target=_child, args=(r, size, port, str(log), dict(os.environ), function, arguments))
            for r in range(size)
        ]
        for process in self.processes:
            process.start()

    def kill(self) -> None:
        """SIGKILL all."""
        for process in self.processes:
            process.kill()
        self.join(10)

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.pid:
                os.kill(process.pid, number)

    def until(self, condition: Callable[[], object], timeout: float = 120) -> None:
        """Wait for something that they do; kill them if it does not come."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or any(p.exitcode is not None for p in self.processes):
                self.kill()
                raise AssertionError(self.text)
            time.sleep(0.05)

    def join(self, timeout: float = 120, moment: float = 10) -> list[int | None]:
        """Wait; like a launcher, end the others when one fails, a moment later. Exit codes in order of rank."""
        deadline = time.monotonic() + timeout
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode not in (None, 0) for p in self.processes):
                deadline = min(deadline, time.monotonic() + moment)
            time.sleep(0.02)
        codes = [p.exitcode for p in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def train(size: int, log: Path, *arguments: str) -> Ranks:
    """pipelines/train.py on `size` ranks."""
    return Ranks(size, log, run_pipeline, "train", list(arguments))


def traced(record: str, arguments: list[str]) -> None:
    """pipelines/train.py, writing down what every micro-batch was made of and its loss."""
    from cmdist.train.trainer import Trainer

    lines: list[dict[str, Any]] = []
    losses = Trainer._losses

    def trace(self: Trainer, batch: Any, point: Any, networks: Any) -> Any:
        draw, loss = losses(self, batch, point, networks)
        digest = hashlib.sha256()
        for tensor in (batch.ids, batch.images, batch.labels, *vars(draw).values()):
            if hasattr(tensor, "numpy"):
                digest.update(tensor.numpy().tobytes())
        lines.append(
            {
                "g": batch.number,
                "hash": digest.hexdigest() + str(draw.dropout_seed),
                "loss": float(loss.minimised.detach().mean()),
            }
        )
        return draw, loss

    Trainer._losses = trace  # type: ignore[method-assign]
    pipeline("train").main(arguments)
    Path(f"{record}-{os.environ['RANK']}.json").write_text(json.dumps(lines))


def killed_in_step(step: int, arguments: list[str]) -> None:
    """pipelines/train.py, until SIGKILL in the middle of a step; the checkpoint that is under way is committed
    before.
    """
    from cmdist.train.trainer import Trainer

    losses = Trainer._losses

    def last(self: Trainer, *rest: Any) -> Any:
        if self.step == step:
            self.saver.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(self, *rest)

    Trainer._losses = last  # type: ignore[method-assign]
    pipeline("train").main(arguments)


def in_turn(record: str, calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """In one rank: each call in a process of its own, forked from here; their exit codes in order go to `record`."""
    import torch._dynamo  # noqa: F401  # which a first derivative in forward mode imports, in 1.6 s

    libc, codes = ctypes.CDLL(None), []
    first = 20_000 + int(os.environ["MASTER_PORT"]) * 37 % 9_000  # apart from those of `free_port`
    for number, (function, arguments) in enumerate(calls):
        child = os.fork()
        if not child:
            code = 1
            try:
                libc.prctl(1, signal.SIGKILL)  # at the end of this rank
                os.environ["MASTER_PORT"] = str(first + number)
                function(*arguments)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    Path(f"{record}-{os.environ['RANK']}.json").write_text(json.dumps(codes))
