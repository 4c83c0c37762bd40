"""Training steps of a recipe on one device, with made-up images: images/s, peak memory, MFU against a measured matrix
product.
"""

import argparse
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

from cmdist import build, runs, seeding
from cmdist import config as configuration
from cmdist.core import distances
from cmdist.core.objectives.base import Networks
from cmdist.errors import CmdistError, ConfigError
from cmdist.nets.lpips import Lpips
from cmdist.plan import plan
from cmdist.system import distributed
from cmdist.tracking import environment
from cmdist.train.averages import Averages, Target
from cmdist.train.engine import Engine
from cmdist.train.optim import make_optimizer


def main(arguments: Sequence[str]) -> None:
    """Print one line for each of the given settings of train.compile, each measured in a process of its own."""
    parser = argparse.ArgumentParser(prog="benchmark.py train", description=__doc__)
    parser.add_argument("config", help="a recipe, e.g. configs/imagenet64/cd.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed, after --warm-up")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_intermixed_args(arguments)
    if options.steps < 1 or options.warm_up < 0:
        raise ConfigError("--steps must be 1 or more, --warm-up 0 or more")
    if options.compile == "both":
        results = [r for each in ("no", "yes") for r in _apart(options, each)]
    else:
        overrides = [*options.overrides, "init=null", f"train.compile={str(options.compile == 'yes').lower()}"]
        config = configuration.load(options.config, overrides)
        world = distributed.start()
        results = [
            measure(config, world.device, options.steps, options.warm_up) | {"environment": environment.describe(world)}
        ]
        distributed.stop(world)
        print(_line(results[0]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _apart(options: argparse.Namespace, compiled: str) -> list[dict[str, Any]]:
    """Figures of another process: what one engine leaves behind in memory must not count as the other's."""
    with tempfile.TemporaryDirectory(prefix="cmdist-") as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, sys.argv[0], "train", options.config, *options.overrides, "--compile", compiled]
        numbers = ["--steps", str(options.steps), "--warm-up", str(options.warm_up), "--json", str(file)]
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
        f"measured {r['matmul_tflops']:.4g} (matrix product in {r['matmul_type']})"
    )


def measure(config: configuration.Config, device: torch.device, steps: int, warm_up: int) -> dict[str, Any]:
    """Figures of whole optimizer steps of one micro-batch: loss with teacher, target and LPIPS, backward, RAdam,
    averages.
    """
    build.set_arithmetic(config)
    torch.manual_seed(0)
    t, o, d = config.train, config.optimizer, config.data
    net = build.network(config).to(device)
    # a teacher with random weights takes as long
    frozen = (
        build.network(config).to(device).eval().requires_grad_(False)
        if config.objective == "consistency_distillation"
        else None
    )
    target = Target(net) if build.needs_target(config) else None
    for module in (net, frozen, target.module if target else None):
        if module is not None:
            build.compiled(config, module)
    optimizer = make_optimizer(o.kind, net.parameters(), betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    engine = Engine(
        net,
        optimizer,
        zero_stage=t.zero_stage,
        micro_batch=t.micro_batch,
        accumulation=1,
        clip=o.clip,
        loss_scale=t.loss_scale if t.precision == "fp16" else None,
    )
    averages = Averages(engine, t.ema)
    networks = Networks(
        student=build.denoiser(config, engine),
        bare_student=build.denoiser(config, engine.module),
        target=build.denoiser(config, target.module) if target else None,
        teacher=build.denoiser(config.model_copy(update={"objective": "denoising"}), frozen) if frozen else None,
    )
    objective = build.objective(config, _distance(config, device))
    generator = seeding.generator(device, 0, "benchmark")
    images = (
        torch.rand(t.micro_batch, d.channels, d.image_size, d.image_size, generator=generator, device=device) * 2 - 1
    )
    labels = torch.zeros(t.micro_batch, dtype=torch.int64, device=device) if d.classes else None
    point = build.curriculum(config)(0)
    engine.set_lr(o.lr)

    def step() -> None:
        draw = objective.draw(images.shape, point, generator)
        engine.backward(objective.loss(networks, images, labels, draw).mean())
        engine.step()
        averages.update()
        if target is not None:
            target.update(engine.module, point.mu)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, steps, warm_up, device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    rates = {name: matmul_flops(device, kinds[name]) for name in {"fp32", t.precision}}
    best = max(rates, key=rates.__getitem__)  # a CPU may well be slower in 16 bits
    plainly = config.network.model_copy(
        update={"checkpoint_activations": False}
    )  # MFU: what is computed twice counts once
    flops = plan(config.model_copy(update={"network": plainly}), 1).flops * t.micro_batch / seconds
    return {
        "config": f"{config.run.root}/{config.run.name}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "precision": t.precision,
        "compile": t.compile,
        "micro_batch": t.micro_batch,
        "steps": steps,
        "seconds_per_step": seconds,
        "images_per_second": t.micro_batch / seconds,
        "peak_memory_gb": peak / 1e9,
        "tflops": flops / 1e12,
        "matmul_tflops": rates[best] / 1e12,
        "matmul_type": "TF32" if best == "fp32" and device.type == "cuda" else best,
        "mfu": flops / rates[best],
    }


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
    """FLOP/s of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)

    return 2 * n**3 / timed(product, 20, 3, device)


def _distance(config: configuration.Config, device: torch.device) -> distances.Distance:
    if not runs.uses_lpips(config):
        return build.distance(config, device)
    return distances.lpips(Lpips(config.loss.lpips_pooling).to(device))  # random weights take as long


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
