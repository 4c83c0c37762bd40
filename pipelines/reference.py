"""Statistics of real images for evaluation, made once: `pipelines/evaluate.py reference`.

python pipelines/evaluate.py reference DATA                                            in the space of the data set's
own extractor,
                                                          with what resampled real images and a matched Gaussian score
                                                          there
torchrun ... pipelines/evaluate.py reference DATA --metrics fid fid_legacy --inception FILE           Inception's, on
all ranks
python pipelines/evaluate.py reference adm.npz --metrics fid_legacy --inception FILE --image-size 64 --out
statistics.npz
                                                          ADM's or clean-fid's file, imported; of ADM's images the
                                                          features are taken

Those of a data set are kept beside it and found there by evaluations; others are named with --reference SPACE=FILE.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm

from cmdist.data.images import ShardedImages, open_dataset
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import extractors, measurement, references
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.metrics import table
from cmdist.evaluation.metrics.frechet import Moments, frechet_distance
from cmdist.evaluation.references import Reference
from cmdist.schema import Config, Evaluation
from cmdist.system import distributed, storage
from cmdist.system.distributed import World


def add_options(parser: argparse.ArgumentParser) -> None:
    """What evaluate.py and this command share."""
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
        "--reference",
        nargs="+",
        default=[],
        metavar="SPACE=FILE",
        help="statistics of real images, e.g. fid_legacy=adm.npz",
    )


def load_extractors(
    options: argparse.Namespace,
    config: Evaluation,
    wanted: Mapping[str, Sequence[str]],
    data: ShardedImages | None,
    device: torch.device,
) -> list[Extractor]:
    """One for each space that is wanted. Raises ConfigError, DataError."""
    files = {"inception": options.inception or config.inception, "dinov2": options.dinov2 or config.dinov2}
    return extractors.load(list(wanted), data, files, device)


def given(
    options: argparse.Namespace, config: Config, spaces: Sequence[Extractor], wanted: Mapping[str, Sequence[str]]
) -> dict[str, Reference]:
    """The references that --reference and the configuration name, by space. Raises ConfigError, DataError."""
    urls = dict(config.evaluation.references)
    for text in options.reference:
        space, equals, url = text.partition("=")
        if not equals or space not in wanted:
            raise ConfigError(
                f"--reference {text}: SPACE=FILE is allowed, with SPACE one of {', '.join(wanted)} "
                "(the spaces of --metrics)"
            )
        urls[space] = url
    found = {}
    for extractor in spaces:
        if extractor.space in urls:
            found[extractor.space] = references.load(urls[extractor.space], extractor, config.data.image_size)
            measurement.check(found[extractor.space].statistics.n, extractor, wanted[extractor.space])
            need = table.need(wanted[extractor.space], "rows")
            if need and found[extractor.space].features is None:
                raise DataError(
                    f"{need[0]} needs features of real images, and {urls[extractor.space]} has "
                    "mean and covariance alone"
                )
    return found


def advance(bar: tqdm, images: int) -> None:  # type: ignore[type-arg]
    """Move a bar by what all ranks are taken to have made: as much as this one; the last blocks may be fewer than the
    ranks.
    """
    assert bar.total is not None, "given when it was made"
    bar.update(min(images, bar.total - bar.n))


def statistics(data: ShardedImages, extractor: Extractor, scratch: str, world: World) -> Reference | None:
    """Statistics of all real images, on rank 0; made once, on all ranks, which must all call, and kept beside them.
    Raises DataError.
    """
    name = measurement.identity(references.describe(extractor) | {"data": data.index_hash})
    url = storage.join(data.url, f"statistics-{name}.npz")
    if distributed.gather(storage.exists(url) if world.first else None, world.control)[0]:
        return references.load(url, extractor, data.index["image_size"]) if world.first else None
    parts = storage.join(scratch, f"parts-statistics-{name}")
    with tqdm(
        total=len(data), desc="real images", unit=" images", disable=not world.first, leave=False, file=sys.stderr
    ) as bar:
        made = references.make(data, extractor, parts, world, lambda images: advance(bar, images * world.size))
    if made is not None:
        try:
            made.save(url)
        except OSError as error:
            print(f"the statistics of the real images are not kept ({url}: {error})", file=sys.stderr)
        storage.remove(parts)
    return made


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate.py reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a data set folder, or an .npz file to import")
    add_options(parser)
    parser.add_argument("--out", metavar="FILE", help="of an imported file: where it goes, .npz")
    parser.add_argument("--image-size", type=int, help="of an imported file: the size of its images")
    parser.add_argument("--n", type=int, default=5000, help="images of the scores (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scores (default %(default)s)")
    options = parser.parse_args(arguments)
    is_file = options.source.endswith(".npz")
    if options.reference or is_file != bool(options.out and options.image_size):
        raise ConfigError(
            "--out and --image-size belong to a file that is imported, and it needs both; "
            "--reference is for evaluations"
        )
    world = distributed.start()
    measurement.set_arithmetic()
    torch.set_num_threads(1)
    with distributed.failing_together(world):
        import_file(options, world) if is_file else measure(options, world)
        distributed.stop(world)


def import_file(options: argparse.Namespace, world: World) -> None:
    """Read, check, add features if there are images, and store."""
    wanted = extractors.spaces(options.metrics or ["fid_legacy"])
    if len(wanted) != 1 or "fd" in wanted:
        raise ConfigError("a file is of one space: --metrics fid, fid_legacy or fd_dinov2")
    if world.first:
        (extractor,) = load_extractors(options, Evaluation(), wanted, None, world.device)
        made = references.load(options.source, extractor, options.image_size)
        made.save(options.out)
        features = "no features" if made.features is None else f"features of {len(made.features)} images"
        print(f"{extractor.space}   {made.hash}   {features}   {options.out}")


def measure(options: argparse.Namespace, world: World) -> None:
    """Statistics of a data set in each space, and in its own one the scores of resampled images and of a matched
    Gaussian.
    """
    data = open_dataset(options.source)
    wanted = extractors.spaces(options.metrics or ["fd" if data.index.get("extractor") else "fid"])
    for extractor in load_extractors(options, Evaluation(), wanted, data, world.device):
        measurement.check(len(data), extractor, wanted[extractor.space], data.url)
        if extractor.space == "fd":
            measurement.check(options.n, extractor, ["fd"])
        real = statistics(data, extractor, data.url, world)
        if real is not None:
            print(f"{extractor.space}   {real.hash}   {real.statistics.n} images")
            if extractor.space == "fd":
                scores(data, extractor, real, options)


def scores(data: ShardedImages, extractor: Extractor, real: Reference, options: argparse.Namespace) -> None:
    """What a perfect copy of the data, and what two moments of its pixels alone, score: two ends to hold figures
    against.
    """
    images = torch.cat([data.images(range(first, min(first + 512, len(data)))) for first in range(0, len(data), 512)])
    values = {}
    for name, make_images in (("bootstrap", measurement.bootstrap), ("matched_gaussian", measurement.matched_gaussian)):
        moments = Moments(extractor.dimensions)
        for piece in make_images(images, options.n, options.seed).split(512):
            moments.add(extractor.features(piece))
        values[name] = frechet_distance(moments.statistics(), real.statistics)
    print(f"{values['bootstrap']:10.4f}   {options.n} real images drawn with replacement")
    print(
        f"{values['matched_gaussian']:10.4f}   {options.n} images of the Gaussian with the pixels' mean and covariance"
    )
    record = {"extractor": extractor.hash, "reference": real.hash, "n": options.n, "seed": options.seed} | values
    storage.write(
        storage.join(data.url, f"references-n{options.n}-seed{options.seed}.json"),
        json.dumps(record, indent=1).encode(),
    )
