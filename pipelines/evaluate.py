"""Measure a run's newest committed checkpoint; a process of its own, on one or many ranks (torchrun, srun).

python pipelines/evaluate.py runs/digits/cd                     one-step and two-step Frechet distance, 5,000 images
python pipelines/evaluate.py runs/digits/edm --steps heun       the many-step figure of a denoising run (its default)
python pipelines/evaluate.py CONFIG.yaml --weights cd_imagenet64_lpips.pt --out FOLDER       a released file, as CONFIG describes it
python pipelines/evaluate.py reference runs/digits/data         what resampled real data and a matched Gaussian score

Figures go to RUN/evaluations and, at the checkpoint's step, into the run in MLflow; one that is there already is not made again.
Those of a file go to FOLDER/evaluations only.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import safetensors.torch
import torch
import xxhash
from tqdm import tqdm

from cmdist import build, cli, distributed, evaluation, generation, pictures, storage, tracking
from cmdist.config import Config
from cmdist.data.images import ShardedImages, open_dataset
from cmdist.distributed import World
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import Extract, Statistics
from cmdist.generation import Sampler, Task
from cmdist.nets.classifier import Classifier
from cmdist.train.checkpoint import checksum, ema_file

ROWS = 4  # of the sample grid


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["reference"]:
        reference(arguments[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or the folder of one of its checkpoints; with --weights a configuration file")
    parser.add_argument("--weights", metavar="FILE", help="a file of weights (.pt, .pth, .safetensors) to measure instead of a run")
    parser.add_argument("--qkv-order", choices=("legacy", "new"), help="of a guided-diffusion file: its order of attention weights")
    parser.add_argument("--out", metavar="FOLDER", help="with --weights: where the figures go")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the newest")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="which average; default: the first of train.ema")
    parser.add_argument("--steps", nargs="+", metavar="N|heun", help="default: 1 2, for a denoising run heun")
    parser.add_argument("--times", nargs="+", type=float, help="noise levels of the multistep sampler; default: sampling.times")
    parser.add_argument("--n", type=int, default=5000, help="images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="image i comes from seed SEED + i (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1024, help="images held on the device at once; changes no image (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.n < 1 or options.seed < 0 or options.batch < 1:
        raise ConfigError("--n and --batch must be 1 or more and --seed 0 or more")
    if (options.weights is None) != (options.out is None) or (options.weights and (options.ema, options.checkpoint) != (None, None)):
        raise ConfigError("--weights FILE and --out FOLDER go together, and without --ema and --checkpoint, which are of runs")
    world = distributed.start()
    torch.set_num_threads(1)  # the number of threads changes the last bits of an image; more cores are used by more ranks
    with distributed.failing_together(world):
        evaluate(options, world)
        distributed.stop(world)


def evaluate(options: argparse.Namespace, world: World) -> None:
    """Make what is missing of the figures that were asked for, and log all."""
    if options.weights:
        model = build.open_model(options.run, file=options.weights, qkv_order=options.qkv_order)
        config, ema, step, title, run_url = model.config, None, 0, model.title, storage.absolute(options.out)
        denoise = model.denoiser(world.device)
        digest = checksum([storage.read(options.weights)]) if world.first else ""
        source = {"url": storage.absolute(options.weights), "weights": f"xxh3:{digest}"}
    else:
        url = storage.absolute(options.run)
        step = distributed.gather(build.open_run(url, options.checkpoint).step if world.first else 0, world.control)[0]
        run = build.open_run(url, step)
        config, ema = run.config, run.config.train.ema[0] if options.ema is None else options.ema
        title, run_url = f"{config.run.name} step {step}, EMA {ema}", run.checkpoint.url.rpartition("/checkpoints/")[0]
        denoise = build.load_denoiser(run, ema, world.device)
        source = {"url": run.checkpoint.url, "weights": f"xxh3:{run.checkpoint.commit['files'][ema_file(ema)]['xxh3']}"}
    data = build.dataset(config)
    extract, extractor = load_extractor(data, world.device)
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    evaluation.check_count(options.n, evaluation.dimensions(extract, data.images([0]).to(world.device)))
    noise = config.noise
    samplers = generation.samplers(
        denoise,
        options.steps,
        options.times or config.sampling.times,
        denoising=config.objective == "denoising",
        ode_steps=config.sampling.ode_steps,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        rho=noise.rho,
    )
    folder = storage.join(run_url, "evaluations")
    if world.first and not options.weights:  # retention keeps the averages of this step from now on
        storage.create(storage.join(folder, f"step-{step:010d}.begun"), b"")
    real = reference_statistics(data, extract, extractor, world.device) if world.first else None
    records: list[dict[str, Any]] = []
    for sampler in samplers:
        record: dict[str, Any] = {}
        if real is not None:
            protocol = {
                "extractor": extractor,
                "reference": real.hash,
                "resize": "none",
                "n": options.n,
                "seeds": [options.seed, options.seed + options.n - 1],
                "labels": f"seed modulo {config.data.classes}" if config.data.classes else "none",
                "rounding": generation.ROUNDING,
            }
            record = {
                "metric": sampler.metric,
                "title": sampler.title,
                "step": step,
                "protocol": protocol,
                "protocol_id": evaluation.identity(protocol),
                "sampling": sampler.described
                | {"ema": ema, "precision": config.train.precision, "group": generation.group_size(*shape[1:])},
                "checkpoint": source,
            }
            record["identity"] = evaluation.identity(record)
        record = distributed.gather(record, world.control)[0]
        stem = storage.join(folder, f"step-{step:010d}-{sampler.metric}-{record['identity']}")
        done = distributed.gather(storage.exists(f"{stem}.json") if world.first else None, world.control)[0]
        if done:
            record = json.loads(storage.read(f"{stem}.json"))
        else:
            record |= make(sampler, shape, extract, real, options, config, world, stem)
            if world.first:
                storage.write(f"{stem}.json", json.dumps(record, indent=1).encode())  # last: with it the figure is there
        if world.first:
            again = " (made before)" if done else ""
            how = f"{title}, {options.n} images, {record['seconds']:.1f} s"
            print(f"{sampler.metric:9s} {record['value']:10.4f}   {how}{again}", flush=True)
        records.append(record | {"stem": stem})
    if world.first and not options.weights:
        log(run_url, records)


def make(
    sampler: Sampler,
    shape: tuple[int, int, int],
    extract: Extract,
    real: Statistics | None,
    options: argparse.Namespace,
    config: Config,
    world: World,
    stem: str,
) -> dict[str, Any]:
    """Generate on all ranks; on rank 0 the figure, and beside it a sample grid (.png) and its images (.npz)."""
    begin = time.monotonic()
    classes = config.data.classes
    columns = pictures.columns(classes)
    task = Task(range(options.seed, options.seed + options.n), shape, classes, sampler.draws)
    with tqdm(total=options.n, desc=sampler.metric, unit=" images", disable=not world.first, leave=False, file=sys.stderr) as bar:
        made = evaluation.measure(
            task, sampler.sample, extract, world, options.batch, (ROWS + 1) * columns, lambda images: bar.update(images * world.size)
        )
    if real is None:
        return {}
    value = evaluation.frechet_distance(evaluation.statistics(made.features), real)
    start = -options.seed % columns if columns == classes else 0  # the first column is class 0
    images = made.images[start : start + ROWS * columns]
    picture = pictures.grid(images, columns, max(1, 40 // shape[1]))
    storage.write(f"{stem}.png", pictures.png(picture))
    storage.write(f"{stem}.npz", pictures.pack(images, columns))
    return {
        "value": value,
        "images": f"sha256:{made.sha256}",
        "code": evaluation.code_version(),
        "device": world.device.type,
        "ranks": world.size,
        "time": time.time_ns() // 1_000_000,
        "seconds": time.monotonic() - begin,
    }


def load_extractor(data: ShardedImages, device: torch.device) -> tuple[Extract, str]:
    """The feature extractor that lies beside a data set, and its checksum. Raises DataError."""
    entry = data.index.get("extractor")
    if not entry:
        raise DataError(f"{data.url} has no feature extractor, so no Frechet distance; pipelines/sample.py makes pictures of the run")
    url = storage.join(data.url, entry["file"])
    try:
        content = storage.read(url)
    except FileNotFoundError as error:
        raise DataError(f"the feature extractor {url} is missing") from error
    if f"xxh3:{xxhash.xxh3_128_hexdigest(content)}" != entry["checksum"]:
        raise DataError(f"the feature extractor {url} is damaged: its checksum is not that of the index")
    return Classifier.from_state_dict(safetensors.torch.load(content)).to(device).features, entry["checksum"]


def all_images(data: ShardedImages, device: torch.device, piece: int = 512) -> Iterator[torch.Tensor]:
    """The images of a data set, uint8 pieces."""
    return (data.images(range(first, min(first + piece, len(data)))).to(device) for first in range(0, len(data), piece))


def reference_statistics(data: ShardedImages, extract: Extract, extractor: str, device: torch.device) -> Statistics:
    """Statistics of all real images, made once and kept beside them."""
    url = storage.join(data.url, f"statistics-{evaluation.identity({'extractor': extractor, 'data': data.index_hash})}.npz")
    if storage.exists(url):
        return evaluation.load_statistics(url)
    made = evaluation.statistics(evaluation.extract_all(all_images(data, device), extract))
    try:
        made.save(url)
    except OSError as error:
        print(f"the statistics of the real images are not kept ({url}: {error})", file=sys.stderr)
    return made


def log(run_url: str, records: Sequence[dict[str, Any]]) -> None:
    """Write the figures into MLflow; if it cannot be reached, say how to do that later."""
    run = json.loads(storage.read(storage.join(run_url, "run.json")))
    if run["tracking_uri"] == "none":
        return
    tracking.deliver(tracking.spool_folder(run_url))
    try:
        for record in records:
            flat = {f"{group}.{key}": value for group in ("protocol", "sampling", "checkpoint") for key, value in record[group].items()}
            flat |= {key: record[key] for key in ("title", "protocol_id", "images", "code", "device", "ranks")} | {"stem": record["stem"]}
            picture = storage.local_path(f"{record['stem']}.png")
            tracking.log_evaluation(
                run["tracking_uri"],
                run["experiment"],
                run["id"],
                record["identity"],
                record["step"],
                record["time"],
                {record["metric"]: record["value"]},
                flat,
                [picture] if picture else [],
            )
    except tracking.TrackingError as error:
        print(f"not in MLflow yet: {error}; the figures are in {run_url}/evaluations, the same command sends them later", file=sys.stderr)


def reference(arguments: Sequence[str]) -> None:
    """What resampled real images and a Gaussian with the pixels' mean and covariance score in a data set's feature space."""
    parser = argparse.ArgumentParser(prog="evaluate.py reference", description=reference.__doc__)
    parser.add_argument("data", help="a data set folder")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, cpu = open_dataset(options.data), torch.device("cpu")
    extract, extractor = load_extractor(data, cpu)
    evaluation.check_count(options.n, evaluation.dimensions(extract, data.images([0])))
    real = reference_statistics(data, extract, extractor, cpu)
    images = torch.cat(list(all_images(data, cpu)))
    values = {}
    for name, make_images in (("bootstrap", evaluation.bootstrap), ("matched_gaussian", evaluation.matched_gaussian)):
        made = make_images(images, options.n, options.seed)
        values[name] = evaluation.frechet_distance(evaluation.statistics(evaluation.extract_all(made.split(512), extract)), real)
    print(f"{values['bootstrap']:10.4f}   {options.n} real images drawn with replacement")
    print(f"{values['matched_gaussian']:10.4f}   {options.n} images of the Gaussian with the pixels' mean and covariance")
    record = {"extractor": extractor, "reference": real.hash, "n": options.n, "seed": options.seed} | values
    storage.write(storage.join(data.url, f"references-n{options.n}-seed{options.seed}.json"), json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    cli.run(main)
