"""References of an evaluation: statistics of real images that are kept beside their data set, named files, and the
scores of real images themselves.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import measurement, references, stored
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.metrics import table
from cmdist.evaluation.metrics.frechet import Moments, frechet_distance
from cmdist.evaluation.references import Reference
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World


def named(texts: Sequence[str], metrics: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """space -> file of texts SPACE=FILE. Raises ConfigError unless each is of a wanted space."""
    urls = {}
    for text in texts:
        space, equals, url = text.partition("=")
        if not equals or space not in metrics:
            raise ConfigError(
                f"--reference {text}: SPACE=FILE is allowed, with SPACE one of {', '.join(metrics)} "
                "(the spaces of --metrics)"
            )
        urls[space] = url
    return urls


def given(
    urls: Mapping[str, str], spaces: Sequence[Extractor], by_space: Mapping[str, Sequence[str]], image_size: int
) -> dict[str, Reference]:
    """The references among files `urls` of the spaces that are wanted, by space. Raises DataError."""
    read = {}
    for extractor in spaces:
        if extractor.space in urls:
            url, metrics = urls[extractor.space], by_space[extractor.space]
            read[extractor.space] = reference = references.load(url, extractor, image_size)
            measurement.check(reference.statistics.n, extractor, metrics)
            need = table.need(metrics, "rows")
            if need and reference.features is None:
                raise DataError(f"{need[0]} needs features of real images, and {url} has mean and covariance alone")
    return read


def progress(total: int, title: str, world: World) -> tuple[tqdm, Callable[[int], None]]:  # type: ignore[type-arg]
    """A bar on rank 0, and what moves it by as much for all ranks as this one has made;
    the last blocks may be fewer than the ranks.
    """
    bar = tqdm(total=total, desc=title, unit=" images", disable=not world.first, leave=False, file=sys.stderr)

    def advance(images: int) -> None:
        world.alive()
        bar.update(min(images * world.size, total - bar.n))

    return bar, advance


def statistics(data: ShardedImages, extractor: Extractor, scratch: str, world: World) -> Reference | None:
    """Statistics of all real images, on rank 0; made once, on all ranks, which must all call, and kept beside them.
    Raises DataError.
    """
    name = measurement.digest(references.describe(extractor) | {"data": data.index_hash})
    url = storage.join(data.url, f"statistics-{name}.npz")
    if distributed.gather(storage.exists(url) if world.first else None, world.control)[0]:
        with cli.before_start():
            return references.load(url, extractor, data.index["image_size"]) if world.first else None
    parts = storage.join(scratch, f"parts-statistics-{name}")
    bar, advance = progress(len(data), "real images", world)
    with bar:
        moments = references.make(data, extractor, parts, world, advance)
    if moments is not None:
        try:
            moments.save(url)
        except OSError as error:
            print(f"the statistics of the real images are not kept ({url}: {error})", file=sys.stderr)
        storage.remove(parts)
    return moments


def scores(data: ShardedImages, extractor: Extractor, real: Reference, n: int, seed: int) -> dict[str, float]:
    """What a perfect copy of the data, and what two moments of its pixels alone, score with n images: two ends to hold
    figures against. They are kept beside the data.
    """
    images = torch.cat([data.images(range(first, min(first + 512, len(data)))) for first in range(0, len(data), 512)])
    values = {}
    for name, make_images in (("bootstrap", measurement.bootstrap), ("matched_gaussian", measurement.matched_gaussian)):
        moments = Moments(extractor.dimensions)
        for piece in make_images(images, n, seed).split(512):
            moments.add(extractor.features(piece))
        values[name] = frechet_distance(moments.statistics(), real.statistics)
    record = {"extractor": extractor.hash, "reference": real.hash, "n": n, "seed": seed} | values
    url = storage.join(data.url, f"references-n{n}-seed{seed}.json")
    stored.write(url, record, values)
    return values
