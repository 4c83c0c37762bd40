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
from collections.abc import Sequence
from functools import partial

from cmdist import build, guiding, models, quality, tuning
from cmdist.checkpoints import record
from cmdist.data.images import ShardedImages, open_dataset
from cmdist.errors import ConfigError
from cmdist.evaluation import extractors, generation, measurement, real, references
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.metrics import table
from cmdist.quality import Request
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World
from cmdist.system.texts import counted

REFERENCE = """Statistics of real images for evaluation, made once.

python pipelines/evaluate.py reference DATA
    in the space of the data set's own extractor, with what resampled real images and a matched Gaussian score there
torchrun ... pipelines/evaluate.py reference DATA --metrics fid fid_legacy --inception FILE
    Inception's, on all ranks
python pipelines/evaluate.py reference adm.npz --metrics fid_legacy --inception FILE --image-size 64 --out new.npz
    ADM's or clean-fid's file, imported; of ADM's images the features are taken

Those of a data set are kept beside it and found there by evaluations; others are named with --reference SPACE=FILE.
"""

tell = partial(print, flush=True)


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["reference"]:
        reference(arguments[1:])
        return
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        "--times",
        nargs="+",
        help="noise levels of the multistep sampler, or `search`: those that search_times.py has found; default: "
        "sampling.times",
    )
    cli.add_guidance(parser)
    parser.add_argument("--n", type=int, default=5000, help="images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="image i comes from seed SEED + i (default %(default)s)")
    parser.add_argument(
        "--batch",
        type=int,
        default=1024,
        help="images held on the device at once; changes no image (default %(default)s)",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    if not 1 <= options.n <= generation.MOST or not 0 <= options.seed < 2**62 or not 1 <= options.batch <= 2**20:
        raise ConfigError(f"--n must be 1 to {generation.MOST}, --batch 1 to {2**20}, and --seed 0 or more, below 2^62")
    if options.weights and options.times == ["search"]:
        raise ConfigError("--times search: times are searched for runs, and kept beside them; --weights has none")
    if options.qkv_order and not options.weights:
        raise ConfigError("--qkv-order is of a file of weights: it needs --weights FILE")
    if (options.weights is None) != (options.out is None) or (
        options.weights and (options.ema, options.checkpoint) != (None, None)
    ):
        raise ConfigError(
            "--weights FILE and --out FOLDER go together, and without --ema and --checkpoint, which are of runs"
        )
    searched = options.times == ["search"]
    request = Request(
        options.n,
        options.seed,
        options.batch,
        options.metrics,
        options.steps,
        None if searched or options.times is None else [tuning.level(text) for text in options.times],
        options.inception,
        options.dinov2,
        options.reference,
        options.trust,
        guiding.guidance_of(options.guidance, options.guidance_interval),
        options.guide,
    )
    url = storage.absolute(options.run)

    def look() -> None:
        if options.weights:
            with cli.before_start():
                quality.check(models.described(options.run, options.weights), request)
            return
        run = models.open_run(url, options.checkpoint)
        record.read(run.checkpoint.url.rpartition("/checkpoints/")[0])
        with cli.before_start():
            quality.check(run.config, tuning.with_times(request, run, options.ema) if searched else request, run.step)

    with quality.started(options.hang_minutes, look) as world:
        if options.weights:
            model = build.open_model(options.run, file=options.weights, qkv_order=options.qkv_order)
            quality.measure_file(model, options.weights, options.out, request, world, tell)
        else:
            newest = models.open_run(url, options.checkpoint).step if world.first else 0
            step = distributed.gather(newest, world.control)[0]  # another one may be committed meanwhile
            run = models.open_run(url, step)
            if searched:
                request = tuning.with_times(request, run, options.ema)
            quality.measure_run(run, request, world, options.ema, tell)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What evaluations and `reference` share."""
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"of {', '.join(table.METRICS)}; default: fd if the data set has an extractor of its own, else fid",
    )
    parser.add_argument(
        "--inception", metavar="FILE", help="Inception's TorchScript weights; default: evaluation.inception"
    )
    parser.add_argument("--dinov2", metavar="FILE", help="DINOv2 as TorchScript; default: evaluation.dinov2")
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="CHECKSUM",
        help="sha256:... of a TorchScript file that may run, beside evaluation.trusted",
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        default=[],
        metavar="SPACE=FILE",
        help="statistics of real images, e.g. fid_legacy=adm.npz",
    )
    parser.add_argument(
        "--hang-minutes",
        type=float,
        default=120.0,
        help="a rank that makes no image for so long ends the command (default %(default)s)",
    )


def reference(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        prog="evaluate.py reference", description=REFERENCE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a data set folder, or an .npz file to import")
    add_options(parser)
    parser.add_argument("--out", metavar="FILE", help="of an imported file: where it goes, .npz")
    parser.add_argument("--image-size", type=int, help="of an imported file: the size of its images")
    parser.add_argument("--n", type=int, help="images of the scores (default 5000)")
    parser.add_argument("--seed", type=int, help="of the scores (default 0)")
    options = parser.parse_args(arguments)
    is_file = options.source.endswith(".npz")
    if is_file or (options.metrics and "fd" not in options.metrics):
        cli.unused(options, ["n", "seed"], "without fd, the space that has scores")
    options.n, options.seed = (5000 if options.n is None else options.n), options.seed or 0
    if not 1 <= options.n <= generation.MOST or not 0 <= options.seed < 2**62:
        raise ConfigError(f"--n must be 1 to {generation.MOST}, and --seed 0 or more, below 2^62")
    if options.reference or is_file != bool(options.out and options.image_size):
        raise ConfigError(
            "--out and --image-size belong to a file that is imported, and it needs both; "
            "--reference is for evaluations"
        )
    files = extractors.Files(options.inception, options.dinov2, options.trust)
    with quality.started(options.hang_minutes) as world, cli.before_start():
        if is_file:
            import_file(options.source, options.metrics, files, options.image_size, options.out, world)
        else:
            describe(open_dataset(options.source), options.metrics, files, options.n, options.seed, world)


def import_file(
    source: str, metrics: list[str] | None, files: extractors.Files, image_size: int, out: str, world: World
) -> None:
    """Read, check, add features if there are images, and store."""
    spaces = extractors.spaces(metrics or ["fid_legacy"])
    if len(spaces) != 1 or "fd" in spaces:
        raise ConfigError("a file is of one space: --metrics fid, fid_legacy or fd_dinov2")
    if world.first:
        (extractor,) = extractors.load(list(spaces), None, files, world.device)
        reference = references.load(source, extractor, image_size)
        reference.save(out)
        of = reference.features
        features = "no features" if of is None else f"features of {counted(len(of), 'image')}"
        tell(f"{extractor.space}   {reference.hash}   {features}   {out}")


def describe(
    data: ShardedImages, metrics: list[str] | None, files: extractors.Files, n: int, seed: int, world: World
) -> None:
    """Statistics of a data set in each space,
    and in its own one the scores of resampled images and of a matched Gaussian.
    """
    spaces = extractors.spaces(metrics or extractors.usual(data))
    for extractor in extractors.load(list(spaces), data, files, world.device):
        measurement.check(len(data), extractor, spaces[extractor.space], data.url)
        if extractor.space == "fd":
            measurement.check(n, extractor, ["fd"])
        statistics = real.statistics(data, extractor, data.url, world)
        if statistics is not None:
            tell(f"{extractor.space}   {statistics.hash}   {counted(statistics.statistics.n, 'image')}")
            if extractor.space == "fd":
                tell_scores(data, extractor, statistics, n, seed)


def tell_scores(data: ShardedImages, extractor: Extractor, statistics: references.Reference, n: int, seed: int) -> None:
    scores = real.scores(data, extractor, statistics, n, seed)
    tell(f"{scores['bootstrap']:10.4f}   {n} real images drawn with replacement")
    tell(f"{scores['matched_gaussian']:10.4f}   {n} images of the Gaussian with the pixels' mean and covariance")


if __name__ == "__main__":
    cli.run(main)
