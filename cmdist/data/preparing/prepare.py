"""From a source to a finished data set, in one go or by parts; what is finished is only compared with its source."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save
from torch import Tensor
from torch.nn import Module
from tqdm import tqdm

from cmdist.data.images import open_dataset
from cmdist.data.index import INDEX
from cmdist.data.preparing import preparation
from cmdist.data.preparing.preparation import Division
from cmdist.data.preparing.shards import finish, write_dataset, write_shards
from cmdist.data.preparing.sources.base import Source
from cmdist.data.preparing.sources.digits import digits
from cmdist.data.preparing.sources.labels import counts
from cmdist.errors import DataError
from cmdist.system import storage, urls
from cmdist.system.texts import counted

EXTRACTOR = "extractor.safetensors"
SEED = 0

Train = Callable[[Tensor, Tensor, int], tuple[Module, float]]  # images, labels, seed -> a classifier, its accuracy


def warn(text: str) -> None:
    """Print a sentence on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Writing:
    """How a source is written; `asked` is what was asked for, as the index keeps it."""

    settings: dict[str, Any]
    per_shard: int
    encoding: str = "png"
    quality: int = 95
    workers: int = 1
    max_bad: int = 0

    def division(self, source: Source) -> Division:
        """The division to write a source like this."""
        return preparation.divide(
            source,
            seed=SEED,
            per_shard=self.per_shard,
            encoding=self.encoding,
            quality=self.quality,
            prepared=self.settings,
        )


def prepare(out: str, make: Callable[[], Source], how: Writing, part: tuple[int, int] | None = None) -> str:
    """Write a source, or the k-th of n parts of it, to the URL `out`; what is there is not written again.
    Returns a sentence on it.

    Raises DataError, also for a finished data set whose source has changed since.
    """
    if is_finished(out, how.settings):
        return compared(out, lambda: how.division(make()))
    source = make()
    division = how.division(source)
    _tell(source)
    try:
        preparation.begin(out, division)
        number, parts = part or (1, 1)
        by_shard = np.array_split(np.arange(division.count), division.shards)
        images = sum(len(ids) for ids in by_shard[number - 1 :: parts])
        title = f"{source.name} -> {out}" + (f", part {number} of {parts}" if part else "")
        with bar(title, images) as shown:
            write_shards(
                out,
                source,
                division,
                part=(number, parts),
                processes=how.workers,
                max_bad=how.max_bad,
                progress=shown.update,
            )
        if part:
            return (
                f"part {number} of {parts} is there; once all are, the same command with --finish instead "
                "of --part writes the index"
            )
        return summary(out, finish(out, division, max_bad=how.max_bad))
    except (DataError, FileNotFoundError):
        if not is_finished(out, how.settings):  # the same command beside this one may have been faster
            raise
        return f"{out} is prepared already"


def finish_parts(out: str, how: Writing) -> str:
    """Write the index once all parts are there. Returns a sentence on it. Raises DataError."""
    if is_finished(out, how.settings):
        return f"{out} is prepared already"
    division = preparation.read_division(out)
    if division.described["prepared"] != how.settings:
        there = division.described["prepared"]
        raise DataError(f"{out} is being prepared with other arguments ({there}, now {how.settings})")
    return summary(out, finish(out, division, max_bad=how.max_bad))


def prepare_digits(out: str, how: Writing, train: Train) -> str:
    """Write scikit-learn's digits, with the classifier that evaluation needs, which `train` makes.
    Returns a sentence on it.
    """
    if is_finished(out, how.settings):
        return f"{out} is prepared already"
    source = digits()
    preparation.begin(out, how.division(source))
    extractor = _extractor(out, source, train)
    with bar(f"{source.name} -> {out}", source.count) as shown:
        index = write_dataset(
            out,
            source,
            seed=SEED,
            per_shard=how.per_shard,
            extractor=extractor,
            prepared=how.settings,
            progress=shown.update,
        )
    return summary(out, index)


def is_finished(out: str, settings: dict[str, Any]) -> bool:
    """Whether a data set is there, prepared as asked. Raises DataError for a damaged one, and one asked otherwise."""
    if not storage.exists(storage.join(out, INDEX)):
        return False
    try:
        there = open_dataset(out).index.get("prepared")
    except DataError as error:
        raise DataError(
            f"{out} was prepared, but is damaged: {error}; restore it, or remove the folder and prepare it again"
        ) from error
    if there != settings:
        raise DataError(
            f"{out} was prepared with other arguments ({there}, now {settings}): give another --out, or remove it"
        )
    preparation.end(out)  # if it was killed between the index and its end
    return True


def compared(out: str, division_now: Callable[[], Division]) -> str:
    """Compare the source as it is now with that of a finished data set. Returns a sentence.
    Raises DataError if it has changed.
    """
    there = open_dataset(out).index.get("origin")
    if there is None:
        return f"{out} is prepared already (by a version that kept nothing to compare its source with)"
    try:
        now = division_now().origin
    except (DataError, OSError) as error:
        return f"{out} is prepared already; its source was not compared: {error}"
    for name, what in (("listing", "its names, sizes or labels"), ("sample", "the content of some images")):
        if now[name] != there.get(name):
            raise DataError(
                f"{out} is prepared already, but its source has changed since ({what}): give another --out, or remove "
                "it and prepare it again"
            )
    if now["modified"] != there.get("modified"):
        warn(
            "warning: files of the source were changed since it was prepared, by their times; a sample of their content"
            " is the same"
        )
    return f"{out} is prepared already"


def _tell(source: Source) -> None:
    if source.passed_over:
        warn(f"warning: {source.passed_over} pictures of other formats are passed over; PNG, JPEG, WebP, PPM are read")
    for note in source.notes:
        (warn if note.startswith("warning") else print)(note)
    if source.labels is not None:
        print(f"classes: {counts(source.classes, source.labels)}", flush=True)


def bar(title: str, images: int | None = None) -> "tqdm[Any]":
    """Images per second and time left, on a terminal in place, in a log once in half a minute."""
    return tqdm(total=images, desc=urls.masked(title), unit=" images", mininterval=0.1 if sys.stderr.isatty() else 30)


def _extractor(out: str, source: Source, train: Train) -> dict[str, Any]:
    """Train the small classifier whose features the Frechet distance is measured in, and store it beside the shards."""
    assert source.labels is not None
    print("training the classifier whose features evaluation compares", flush=True)
    torch.set_num_threads(1)  # so that the bytes do not depend on the number of cores
    images = torch.from_numpy(np.stack([source.image(i) for i in range(source.count)]).transpose(0, 3, 1, 2).copy())
    classifier, accuracy = train(images, torch.from_numpy(source.labels), SEED)
    data = save(classifier.state_dict())
    storage.write(storage.join(out, EXTRACTOR), data)
    return {"file": EXTRACTOR, "checksum": "xxh3:" + xxhash.xxh3_128_hexdigest(data), "accuracy": accuracy}


def summary(url: str, index: dict[str, Any]) -> str:
    """A sentence on a data set that is finished."""
    size = index["image_size"]
    classes = counted(len(index["classes"]), "class", "classes") if index["labelled"] else "no labels"
    extractor = (
        f", classifier for evaluation {index['extractor']['accuracy']:.1%} right on held-out images"
        if index["extractor"]
        else ""
    )
    origin = index.get("origin") or {}
    turned = f"; {origin['turned']} turned upright as their EXIF data say" if "turned" in origin else ""
    laid = f"; {origin['transparent']} transparent ones laid on the background" if "transparent" in origin else ""
    report = storage.join(url, preparation.REPORT)
    bad = f"; unreadable images were left out: {report}" if storage.exists(report) else ""
    images = f"{counted(index['count'], 'image')} of {size}x{size}x{index['channels']}"
    return f"{url}: {images} in {counted(len(index['shards']), 'shard')}, {classes}{extractor}{turned}{laid}{bad}"
