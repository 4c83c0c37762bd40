"""Measure a run's newest committed checkpoint; a process of its own, on one or many ranks (torchrun, srun).

python pipelines/evaluate.py runs/digits/cd                     one-step and two-step Frechet distance, 5,000 images
python pipelines/evaluate.py runs/digits/edm --steps heun       the many-step figure of a denoising run (its default)
python pipelines/evaluate.py runs/lsun/cd --n 50000 --metrics fid fid_legacy precision recall --inception
weights/inception-2015-12-05.pt
python pipelines/evaluate.py CONFIG.yaml --weights cd_imagenet64_lpips.pt --out FOLDER       a released file, as CONFIG
describes it
python pipelines/evaluate.py reference ...                      statistics of real images (reference --help)

Figures go to RUN/evaluations and, at the checkpoint's step, into the run in MLflow; one that is there already is not
made again. Those of a file go to FOLDER/evaluations only. A killed evaluation goes on where it was, on any number of
ranks, with the same result.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import reference  # pipelines/reference.py
import torch
from tqdm import tqdm

from cmdist import build, migrations, runs
from cmdist.checkpoints import record as record_of_run
from cmdist.checkpoints.checkpoint import checksum, ema_file
from cmdist.config import Config
from cmdist.core.noise import Denoise
from cmdist.errors import ConfigError
from cmdist.evaluation import extractors, generation, measurement, pictures
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.generation import Sampler, Task
from cmdist.evaluation.metrics import table
from cmdist.evaluation.references import Reference
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World
from cmdist.tracking import courier
from cmdist.tracking import mlflow as tracking

ROWS = 4  # of the sample grid


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["reference"]:
        reference.main(arguments[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", help="a run folder, or the folder of one of its checkpoints; with --weights a configuration file"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="a file of weights (.pt, .pth, .safetensors) to measure instead of a run"
    )
    parser.add_argument(
        "--qkv-order", choices=("legacy", "new"), help="of a guided-diffusion file: its order of attention weights"
    )
    parser.add_argument("--out", metavar="FOLDER", help="with --weights: where the figures go")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the newest")
    parser.add_argument(
        "--ema", type=float, nargs="+", metavar="DECAY", help="which averages; default: the first of train.ema"
    )
    parser.add_argument("--steps", nargs="+", metavar="N|heun", help="default: 1 2, for a denoising run heun")
    parser.add_argument(
        "--times", nargs="+", type=float, help="noise levels of the multistep sampler; default: sampling.times"
    )
    parser.add_argument("--n", type=int, default=5000, help="images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="image i comes from seed SEED + i (default %(default)s)")
    parser.add_argument(
        "--batch",
        type=int,
        default=1024,
        help="images held on the device at once; changes no image (default %(default)s)",
    )
    reference.add_options(parser)
    options = parser.parse_args(arguments)
    if options.n < 1 or options.seed < 0 or options.batch < 1:
        raise ConfigError("--n and --batch must be 1 or more and --seed 0 or more")
    if (options.weights is None) != (options.out is None) or (
        options.weights and (options.ema, options.checkpoint) != (None, None)
    ):
        raise ConfigError(
            "--weights FILE and --out FOLDER go together, and without --ema and --checkpoint, which are of runs"
        )
    world = distributed.start()
    measurement.set_arithmetic()
    # the number of threads changes the last bits of an image; more cores are used by more ranks
    torch.set_num_threads(1)
    with distributed.failing_together(world):
        evaluate(options, world)
        distributed.stop(world)


@dataclass(frozen=True)
class Subject:
    """Weights to measure, what a record says of them, and the folder that figures go to."""

    title: str
    ema: float | None
    denoise: Denoise
    source: dict[str, str]


def subjects(options: argparse.Namespace, world: World) -> tuple[Config, str, int, list[Subject]]:
    """(configuration, folder, step, what to measure). Raises ConfigError, CheckpointError."""
    if options.weights:
        model = build.open_model(options.run, file=options.weights, qkv_order=options.qkv_order)
        digest = checksum([storage.read(options.weights)])
        source = {"url": storage.absolute(options.weights), "weights": f"xxh3:{digest}"}
        return (
            model.config,
            storage.absolute(options.out),
            0,
            [Subject(model.title, None, model.denoiser(world.device), source)],
        )
    url = storage.absolute(options.run)
    step = distributed.gather(runs.open_run(url, options.checkpoint).step if world.first else 0, world.control)[0]
    run, made = runs.open_run(url, step), []
    for ema in dict.fromkeys(options.ema or run.config.train.ema[:1]):
        denoise = build.load_denoiser(run, ema, world.device)
        source = {"url": run.checkpoint.url, "weights": f"xxh3:{run.checkpoint.commit['files'][ema_file(ema)]['xxh3']}"}
        made.append(Subject(f"{run.config.run.name} step {step}, EMA {ema}", ema, denoise, source))
    return run.config, run.checkpoint.url.rpartition("/checkpoints/")[0], step, made


def evaluate(options: argparse.Namespace, world: World) -> None:
    """Make what is missing of the figures that were asked for, and log all."""
    config, run_url, step, measured = subjects(options, world)
    folder, data = storage.join(run_url, "evaluations"), build.dataset(config, world)
    wanted = extractors.spaces(options.metrics or ["fd" if data.index.get("extractor") else "fid"])
    spaces = reference.load_extractors(options, config.evaluation, wanted, data, world.device)
    for extractor in spaces:
        measurement.check(options.n, extractor, wanted[extractor.space])
    every = [(subject, sampler) for subject in measured for sampler in samplers(options, config, subject.denoise)]
    real = reference.given(options, config, spaces, wanted) if world.first else {}
    if world.first and not options.weights:  # retention keeps the averages of this step from now on
        storage.create(storage.join(folder, f"step-{step:010d}.begun"), b"")
    for extractor in spaces:
        if not distributed.gather(extractor.space in real, world.control)[0]:
            measurement.check(len(data), extractor, wanted[extractor.space], data.url)
            made = reference.statistics(data, extractor, folder, world)
            if made is not None:
                real[extractor.space] = made
    known, shown = read_records(folder, step) if world.first else [], []
    for subject, sampler in every:
        bases = (
            [describe(options, config, step, subject, sampler, e, real[e.space]) for e in spaces] if world.first else []
        )
        missing = [[m for m in wanted[base["protocol"]["space"]] if find(known, base, m) is None] for base in bases]
        missing = distributed.gather(missing, world.control)[0]
        if any(missing):
            todo = [
                (extractor, metrics, real.get(extractor.space))
                for extractor, metrics in zip(spaces, missing, strict=True)
                if metrics
            ]
            known += make(
                subject,
                sampler,
                todo,
                [base for base, m in zip(bases, missing, strict=False) if m],
                options,
                config,
                world,
                folder,
            )
        for base in bases:
            for metric in wanted[base["protocol"]["space"]]:
                record = find(known, base, metric)
                assert record is not None, "made just now"
                again = "" if any(missing) else " (made before)"
                name = f"{metric}_{sampler.name}"
                how = f"{subject.title}, {options.n} images, {record['seconds']:.1f} s"
                print(f"{name:15s} {record['metrics'][name]:10.4f}   {how}{again}", flush=True)
                shown += [record] if record not in shown else []
    if world.first and not options.weights:
        log(run_url, shown)


def samplers(options: argparse.Namespace, config: Config, denoise: Denoise) -> list[Sampler]:
    """The ways to make images that were asked for. Raises ConfigError."""
    noise = config.noise
    return generation.samplers(
        denoise,
        options.steps,
        options.times or config.sampling.times,
        denoising=config.kind.makes == "denoiser",
        ode_steps=config.sampling.ode_steps,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        rho=noise.rho,
    )


def describe(
    options: argparse.Namespace,
    config: Config,
    step: int,
    subject: Subject,
    sampler: Sampler,
    extractor: Extractor,
    real: Reference,
) -> dict[str, Any]:
    """What a record says of its figures before they are made; `measured` names it."""
    protocol = {
        "space": extractor.space,
        "extractor": extractor.hash,
        "reference": real.hash,
        "resize": extractor.resize,
        "definitions": table.definitions(extractor.space),
        "n": options.n,
        "seeds": [options.seed, options.seed + options.n - 1],
        "labels": f"seed modulo {config.data.classes}" if config.data.classes else "none",
        "rounding": generation.ROUNDING,
        "arithmetic": measurement.ARITHMETIC,
    }
    size = config.data.image_size
    sampling = {"ema": subject.ema, "precision": config.train.precision, "group": generation.group_size(size, size)}
    record = {
        "title": sampler.title,
        "step": step,
        "protocol": protocol,
        "protocol_id": measurement.identity(protocol),
        "sampling": sampler.described | sampling,
        "checkpoint": subject.source,
    }
    return record | {
        "measured": measurement.identity(record | {"checkpoint": subject.source["weights"]})
    }  # a run may be moved


def read_records(folder: str, step: int) -> list[dict[str, Any]]:
    """What has been measured of a step."""
    names = [name for name in storage.names(folder) if name.startswith(f"step-{step:010d}-") and name.endswith(".json")]
    return [migrations.EVALUATION.migrate(json.loads(storage.read(f"{folder}/{name}")), name) for name in names]


def find(records: Sequence[dict[str, Any]], base: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """The record that holds a metric of what `base` describes."""
    for record in records:
        if record.get("measured") == base["measured"] and any(
            name.rpartition("_")[0] == metric for name in record["metrics"]
        ):
            return record
    return None


def make(
    subject: Subject,
    sampler: Sampler,
    todo: Sequence[tuple[Extractor, Sequence[str], Reference | None]],
    bases: Sequence[dict[str, Any]],
    options: argparse.Namespace,
    config: Config,
    world: World,
    folder: str,
) -> list[dict[str, Any]]:
    """Generate on all ranks; on rank 0 a record of each space, a sample grid (.png) and its images (.npz) with it."""
    begin = time.monotonic()
    size, classes = config.data.image_size, config.data.classes
    columns = pictures.columns(classes)
    task = Task(
        range(options.seed, options.seed + options.n), (config.data.channels, size, size), classes, sampler.draws
    )
    content = {
        "of": [base["measured"] for base in bases],
        "probabilities": any(table.need(metrics, "probabilities") for _, metrics, _ in todo),
    }
    parts = storage.join(folder, f"parts-{distributed.gather(measurement.identity(content), world.control)[0]}")
    with tqdm(
        total=options.n, desc=sampler.name, unit=" images", disable=not world.first, leave=False, file=sys.stderr
    ) as bar:
        made = measurement.measure(
            task,
            sampler.sample,
            todo,
            parts,
            world,
            options.batch,
            (ROWS + 1) * columns,
            lambda images: reference.advance(bar, images * world.size),
        )
    if made is None:
        return []
    start = -options.seed % columns if columns == classes else 0  # the first column is class 0
    images = made.images[start : start + ROWS * columns]
    picture = pictures.png(pictures.grid(images, columns, max(1, 40 // size)))
    how = {
        "images": f"sha256:{made.sha256}",
        "code": measurement.code_version(),
        "device": world.device.type,
        "ranks": world.size,
        "time": time.time_ns() // 1_000_000,
        "seconds": time.monotonic() - begin,
    }
    records = []
    for base, (_, metrics, _) in zip(bases, todo, strict=True):
        record = base | {"metrics": {f"{metric}_{sampler.name}": made.figures[metric] for metric in metrics}} | how
        record["identity"] = measurement.identity({"measured": base["measured"], "metrics": list(metrics)})
        record["stem"] = storage.join(
            folder, f"step-{base['step']:010d}-{metrics[0]}_{sampler.name}-{record['identity']}"
        )
        storage.write(f"{record['stem']}.png", picture)
        storage.write(f"{record['stem']}.npz", pictures.pack(images, columns))
        text = json.dumps(migrations.EVALUATION.stamp(record), indent=1).encode()
        storage.write(f"{record['stem']}.json", text)  # last: with it the figures are there
        records.append(record)
    storage.remove(parts)
    return records


def log(run_url: str, records: Sequence[dict[str, Any]]) -> None:
    """Write the figures into MLflow; if it cannot be reached, say how to do that later."""
    run = record_of_run.read(run_url)
    if run["tracking_uri"] == "none":
        return
    courier.deliver(tracking.spool_folder(run_url))
    try:
        for record in records:
            flat = {
                f"{group}.{key}": value
                for group in ("protocol", "sampling", "checkpoint")
                for key, value in record[group].items()
            }
            flat |= {key: record[key] for key in ("title", "protocol_id", "images", "code", "device", "ranks", "stem")}
            picture = storage.local_path(f"{record['stem']}.png")
            tracking.log_evaluation(
                run["tracking_uri"],
                run["experiment"],
                run["id"],
                record["identity"],
                record["step"],
                record["time"],
                record["metrics"],
                flat,
                [picture] if picture else [],
            )
    except tracking.TrackingError as error:
        print(
            f"not in MLflow yet: {error}; the figures are in {run_url}/evaluations, the same command sends them later",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
