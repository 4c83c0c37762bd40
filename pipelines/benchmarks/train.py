"""Training steps of a recipe on one device, with made-up images:
images/s, peak memory, MFU against a measured matrix product.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks._trainer import trainer_of

from cmdist import config as configuration
from cmdist.errors import CmdistError, ConfigError
from cmdist.plan import plan
from cmdist.system import cli, distributed
from cmdist.system.distributed import World
from cmdist.tracking import environment
from cmdist.train.trainer import Trainer


def main(arguments: Sequence[str]) -> None:
    """Print one line for each of the given settings of train.compile, each measured in a process of its own."""
    parser = cli.Parser(prog="benchmark.py train", description=__doc__)
    parser.add_argument("config", help="a recipe, e.g. configs/imagenet64/cd.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed, after --warm-up")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="no")
    parser.add_argument(
        "--passes", action="store_true", help="also time each pass alone: networks forward, backward, with a tangent"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_intermixed_args(arguments)
    if options.steps < 1 or options.warm_up < 0:
        raise ConfigError("--steps must be 1 or more, --warm-up 0 or more")
    if options.compile == "both":
        results = [
            r
            for each in ("no", "yes")
            for r in _apart(options.config, options.overrides, each, options.steps, options.warm_up)
        ]
    else:
        overrides = [*options.overrides, "init=null", f"train.compile={str(options.compile == 'yes').lower()}"]
        config = configuration.load(options.config, overrides)
        world = distributed.start()
        results = [
            measure(config, world, options.steps, options.warm_up) | {"environment": environment.describe(world)}
        ]
        print(_line(results[0]), flush=True)
        if options.passes:
            from benchmarks.passes import passes

            with trainer_of(config, world) as trainer:
                take(trainer)
                results[0]["passes"] = parts = passes(trainer, options.steps)
            each = ", ".join(f"{n} {kind} of {parts['seconds'][kind]:.3g} s" for kind, n in parts["counts"].items())
            print(f"passes alone: {each}; a step takes {parts['ratio']:.3f} of their sum, {parts['sum']:.3g} s")
        distributed.stop(world)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _apart(config: str, overrides: Sequence[str], compiled: str, steps: int, warm_up: int) -> list[dict[str, Any]]:
    """Figures of another process: what one engine leaves behind in memory must not count as the other's."""
    with tempfile.TemporaryDirectory(prefix="cmdist-") as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, sys.argv[0], "train", config, *overrides, "--compile", compiled]
        numbers = ["--steps", str(steps), "--warm-up", str(warm_up), "--json", str(file)]
        if subprocess.run([*command, *numbers], check=False).returncode:
            raise CmdistError(f"the measurement with --compile {compiled} failed")
        return json.loads(file.read_text())  # type: ignore[no-any-return]


def _line(r: dict[str, Any]) -> str:
    e = r["environment"]
    versions = [f"{name} {e['packages'][name]}" for name in ("torch", "deepspeed")]
    versions += [f"CUDA {e['CUDA']}", f"cuDNN {e['cuDNN']}"] if e["CUDA"] else []
    return (
        f"{r['config']} on {r['device']}, {', '.join(versions)}, commit "
        f"{e['commit'][:7]}{'-dirty' * e['commit'].endswith('-dirty')}, "
        f"{r['precision']}, compile {'on' if r['compile'] else 'off'}, micro-batch {r['micro_batch']}: "
        f"{r['images_per_second']:.4g} images/s, peak {r['peak_memory_gb']:.1f} GB, {r['tflops']:.4g} TFLOP/s = "
        f"{r['mfu']:.1%} of the "
        f"measured {r['matmul_tflops']:.4g} (matrix product in {r['matmul_type']}), "
        f"{r['touched_gb']:.1f} GB touched if nothing is compiled"
    )


def measure(config: configuration.Config, world: World, steps: int, warm_up: int) -> dict[str, Any]:
    """Figures of whole optimizer steps of one micro-batch, as training takes them."""
    t, device, begin = config.train, world.device, time.perf_counter()
    with trainer_of(config, world) as trainer:
        to_make = time.perf_counter() - begin
        take(trainer)
        first = time.perf_counter() - begin - to_make  # kernels are chosen or compiled in it
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(lambda: take(trainer), steps, max(0, warm_up - 1), device)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    rates = {name: matmul_flops(device, kinds[name]) for name in {"fp32", t.precision}}
    best = max(rates, key=rates.__getitem__)  # a CPU may well be slower in 16 bits
    again = "network.checkpoint_activations"  # MFU: what is computed twice counts once
    twice = configuration.by_key(config).get(again, False)
    planned = plan(configuration.replaced(config, {again: False}) if twice else config, 1)
    flops = planned.flops * t.micro_batch / seconds
    as_run = plan(config, 1) if twice else planned
    memory, touched = as_run.total_memory, sum(as_run.touched.values())
    return {
        "config": f"{config.run.root}/{config.run.name}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "precision": t.precision,
        "compile": t.compile,
        "micro_batch": t.micro_batch,
        "steps": steps,
        "seconds_per_step": seconds,
        "seconds_to_make": to_make,
        "seconds_of_first_step": first,
        "images_per_second": t.micro_batch / seconds,
        "peak_memory_gb": peak / 1e9,
        "planned_memory_gb": memory / 1e9,
        "tflops": flops / 1e12,
        "touched_gb": touched / 1e9,
        "matmul_tflops": rates[best] / 1e12,
        "matmul_type": "TF32" if best == "fp32" and device.type == "cuda" else best,
        "mfu": flops / rates[best],
    }


def take(trainer: Trainer) -> None:
    """One step of the loop, without logging and checkpoints."""
    trainer.train_step(trainer.objective.at(trainer.step))
    trainer.step += 1


def timed(step: Callable[[], None], steps: int, warm_up: int, device: torch.device) -> float:
    """Median seconds of a step."""
    times = []
    for i in range(warm_up + steps):
        _wait(device)
        begin = time.perf_counter()
        step()
        _wait(device)
        if i >= warm_up:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the fastest of three times seven: other work makes it slower only."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)

    return 2 * n**3 / min(timed(product, 7, 3, device) for _ in range(3))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
