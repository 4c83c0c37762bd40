"""Turn images into a data set folder of WebDataset shards and an index.

python pipelines/prepare_data.py digits --out data/digits
python pipelines/prepare_data.py lsun bedroom_train_lmdb --size 256 --out s3://bucket/bedroom
python pipelines/prepare_data.py imagenet ILSVRC2012_img_train.tar --size 64 --enlarge --out data/imagenet64     (or the
folder of synsets)
python pipelines/prepare_data.py imagenet64 FOLDER_OF_NPZ --class-map map_clsloc.txt --out data/imagenet64-official
python pipelines/prepare_data.py cifar10 cifar-10-binary.tar.gz --out data/cifar10
python pipelines/prepare_data.py folder ~/pictures --size 64 --out data/pictures     (labels: the names of sub-folders,
if any)
python pipelines/prepare_data.py zip pictures.zip --size 64 --out data/pictures
python pipelines/prepare_data.py shards s3://bucket/folder --name pictures           (WebDataset shards that are there
already)

Interrupted anywhere, the same command goes on. Shared out to n jobs: the same command with --part 1/n ... --part n/n
(in a Slurm array each task takes its own part, see cluster/prepare_data.sbatch), then once with --finish, which only
writes the index.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save
from tqdm import tqdm

from cmdist.data.decode import ENCODINGS, MAX_PIXELS
from cmdist.data.images import open_dataset
from cmdist.data.index import INDEX
from cmdist.data.preparing import preparation
from cmdist.data.preparing.shards import finish, index_shards, write_dataset, write_shards
from cmdist.data.preparing.sources.base import Source
from cmdist.data.preparing.sources.cifar10 import cifar10
from cmdist.data.preparing.sources.digits import digits
from cmdist.data.preparing.sources.files import folder, zipped
from cmdist.data.preparing.sources.imagenet import SYNSETS, imagenet
from cmdist.data.preparing.sources.imagenet64 import BATCHES, imagenet64
from cmdist.data.preparing.sources.lsun import lsun
from cmdist.errors import ConfigError, DataError
from cmdist.nets.classifier import train_classifier
from cmdist.system import cli, storage

EXTRACTOR = "extractor.safetensors"
SEED = 0
LARGEST = math.isqrt(MAX_PIXELS)  # pixels of a side

SOURCES: dict[str, Callable[[argparse.Namespace], Source]] = {
    "lsun": lambda o: lsun(o.path, o.size, o.enlarge),
    "imagenet": lambda o: imagenet(o.path, o.size, o.synsets, o.enlarge),
    "imagenet64": lambda o: imagenet64(o.path, o.batches, o.class_map),
    "cifar10": lambda o: cifar10(o.path, o.split),
    "folder": lambda o: folder(o.path, o.size, o.enlarge),
    "zip": lambda o: zipped(o.path, o.size, o.enlarge),
}
# what decides how to write, not what
_NOT_STORED = ("out", "workers", "part", "finish", "max_bad")


def main(arguments: Sequence[str]) -> None:
    """Prepare what the command line asks for, or say that it is there."""
    options = _parser().parse_args(arguments)
    if options.source == "shards":
        return _index(options)
    _check(options)
    out, prepared = options.out, _prepared(options)
    if _finished(out, prepared):
        print(f"{out} is prepared already")
    elif options.source == "digits":
        _digits(out, options.per_shard, prepared)
    elif options.finish:
        plan = preparation.read_plan(out)
        if plan.described["prepared"] != prepared:
            raise DataError(
                f"{out} is being prepared with other arguments ({plan.described['prepared']}, now {prepared})"
            )
        print(_summary(out, finish(out, plan, max_bad=options.max_bad)))
    else:
        try:
            _prepare(options, prepared)
        except (DataError, FileNotFoundError):
            if not _finished(out, prepared):  # the same command beside this one may have been faster
                raise
            print(f"{out} is prepared already")
    return None


def _prepare(options: argparse.Namespace, prepared: dict[str, Any]) -> None:
    part, out = _part(options.part, os.environ), options.out
    source = SOURCES[options.source](options)
    plan = preparation.make_plan(
        source,
        seed=SEED,
        per_shard=options.per_shard,
        encoding=options.format,
        quality=options.quality,
        prepared=prepared,
    )
    if source.passed_over:
        print(
            f"warning: {source.passed_over} pictures of other formats are passed over; PNG, JPEG, WebP, PPM are read",
            file=sys.stderr,
        )
    preparation.begin(out, plan)
    number, parts = part or (1, 1)
    images = sum(len(ids) for ids in np.array_split(np.arange(plan.count), plan.shards)[number - 1 :: parts])
    title = f"{source.name} -> {out}" + (f", part {number} of {parts}" if part else "")
    with _bar(title, images) as bar:
        write_shards(
            out,
            source,
            plan,
            part=(number, parts),
            processes=options.workers,
            max_bad=options.max_bad,
            progress=bar.update,
        )
    if part:
        print(
            f"part {number} of {parts} is there; once all are, the same command with --finish instead "
            "of --part writes the index"
        )
    else:
        print(_summary(out, finish(out, plan, max_bad=options.max_bad)))


def _digits(out: str, per_shard: int, prepared: dict[str, Any]) -> None:
    source = digits()
    preparation.begin(out, preparation.make_plan(source, seed=SEED, per_shard=per_shard, prepared=prepared))
    extractor = _train_extractor(out, source)
    with _bar(f"{source.name} -> {out}", source.count) as bar:
        index = write_dataset(
            out, source, seed=SEED, per_shard=per_shard, extractor=extractor, prepared=prepared, progress=bar.update
        )
    print(_summary(out, index))


def _bar(title: str, images: int | None = None) -> "tqdm[Any]":
    """Images per second and time left, on a terminal in place, in a log once in half a minute."""
    return tqdm(total=images, desc=title, unit=" images", mininterval=0.1 if sys.stderr.isatty() else 30)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sources = parser.add_subparsers(dest="source", required=True)
    sub = {
        "digits": sources.add_parser(
            "digits", help="scikit-learn's 1,797 handwritten digits, 8x8 grey; nothing is downloaded"
        ),
        "lsun": sources.add_parser("lsun", help="one category of LSUN: its LMDB folder"),
        "imagenet": sources.add_parser(
            "imagenet", help="ImageNet's train folder of synset folders, or ILSVRC2012_img_train.tar"
        ),
        "imagenet64": sources.add_parser("imagenet64", help="the official downsampled ImageNet64: its npz batches"),
        "cifar10": sources.add_parser(
            "cifar10", help="CIFAR-10, the binary version or the pickled one: folder or .tar.gz"
        ),
        "folder": sources.add_parser("folder", help="your own images, as RGB"),
        "zip": sources.add_parser("zip", help="a zip file of your own images, as RGB"),
    }
    shards = sources.add_parser("shards", help="index WebDataset shards where they are")
    shards.add_argument("url", type=_not_empty)
    shards.add_argument("--name", default="shards")
    shards.add_argument("--channels", type=int, choices=(1, 3), default=3)
    for name in SOURCES:
        sub[name].add_argument("path", type=lambda text: Path(_not_empty(text)))
    for name, size in (("lsun", 256), ("imagenet", 64), ("folder", None), ("zip", None)):
        default = "default: %(default)s" if size else "default: leave as it is"
        sub[name].add_argument(
            "--size", type=int, default=size, help=f"crop to the centre square and resize to so many pixels; {default}"
        )
        sub[name].add_argument(
            "--enlarge", action="store_true", help="enlarge smaller images, as ADM does; without, they count as bad"
        )
    sub["imagenet"].add_argument(
        "--synsets", type=int, default=SYNSETS, help="how many there are (default %(default)s)"
    )
    sub["imagenet64"].add_argument(
        "--batches", type=int, default=BATCHES, help="how many there are (default %(default)s)"
    )
    sub["imagenet64"].add_argument(
        "--class-map", type=Path, help="the devkit's map_clsloc.txt: number classes by sorted synsets, as in ADM"
    )
    sub["cifar10"].add_argument("--split", choices=("train", "test"), default="train")
    for name in SOURCES:
        sub[name].add_argument(
            "--format",
            choices=ENCODINGS,
            default="webp",
            help="of the images in shards; all but jpg are lossless (webp)",
        )
        sub[name].add_argument("--quality", type=int, default=95, help="of jpg (default %(default)s)")
        sub[name].add_argument(
            "--workers",
            type=int,
            default=len(os.sched_getaffinity(0)),
            help="processes (default: %(default)s, all cores)",
        )
        sub[name].add_argument(
            "--part",
            help="K/N: write only the K-th of N parts of the shards (default: all, in a Slurm array its task's)",
        )
        sub[name].add_argument("--finish", action="store_true", help="only write the index, once all parts are there")
        sub[name].add_argument(
            "--max-bad", type=int, default=0, help="unreadable images to leave out and report (default %(default)s)"
        )
    for name, parsed in sub.items():
        parsed.add_argument("--out", required=True, type=_not_empty, help="folder or URL of the data set")
        per_shard = 200 if name == "digits" else 5000
        parsed.add_argument("--per-shard", type=int, default=per_shard, help="images in a shard (default %(default)s)")
    for each in (parser, shards, *sub.values()):
        each.error = _refuse  # type: ignore[method-assign,assignment]
    return parser


def _not_empty(text: str) -> str:
    if not text.strip():  # an unset variable of the shell; it would mean the root or the folder that we are in
        raise argparse.ArgumentTypeError("it is empty; a path is needed")
    return text


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}; see pipelines/prepare_data.py --help")


def _check(options: argparse.Namespace) -> None:
    given = vars(options)
    if options.per_shard < 1 or (given.get("size") is not None and options.size < 1):
        raise ConfigError("--per-shard and --size must be 1 or more")
    if given.get("synsets", 1) < 1 or given.get("batches", 1) < 1:
        raise ConfigError("--synsets and --batches must be 1 or more")
    if (given.get("size") or 1) > LARGEST:
        raise ConfigError(f"--size {options.size}: at most {LARGEST} pixels are allowed")
    if given.get("workers", 1) < 1 or given.get("max_bad", 0) < 0 or not 1 <= given.get("quality", 1) <= 100:
        raise ConfigError("--workers must be 1 or more, --max-bad 0 or more, --quality 1 to 100")
    if options.out.startswith("memory:") and given.get("workers", 1) > 1:
        raise ConfigError(
            f"--out {options.out}: memory is shared by no processes and ends with this one; it needs --workers 1"
        )
    if given.get("enlarge") and options.size is None:
        raise ConfigError("--enlarge needs --size")
    if given.get("finish") and options.part:
        raise ConfigError("--finish comes after all parts: give it or --part")


def _part(given: str | None, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(K, N) of --part K/N, or of the Slurm array that this is a task of; None: everything."""
    if given is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", given)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part {given}: K/N with K from 1 to N is needed, e.g. --part 3/8")
        return int(match[1]), int(match[2])
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    if names[0] not in environment:
        return None
    texts = [environment.get(name, environment[names[0]] if name != names[1] else "1") for name in names]
    if strange := [f"{name}={text}" for name, text in zip(names, texts, strict=True) if not text.isdigit()]:
        raise ConfigError(f"{strange[0]}: a number is needed; give --part, or unset it outside of a Slurm array")
    task, count, first, last = map(int, texts)
    if last - first + 1 != count:
        raise ConfigError(
            f"the Slurm array {first} to {last} has {count} tasks, so some parts would be missing: use one without "
            f"gaps, e.g. 1-{count}"
        )
    return task - first + 1, count


def _prepared(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked for, as it is kept in the index; switches that are off are left out."""
    arguments: dict[str, Any] = {"source": options.source, "per_shard": options.per_shard, "seed": SEED}
    for name, value in vars(options).items():
        if name not in (*arguments, *_NOT_STORED) and (value not in (None, False) or name == "size"):
            arguments[name] = str(value.resolve()) if isinstance(value, Path) else value
    if arguments.get("format") != "jpg":
        arguments.pop("quality", None)
    return arguments


def _finished(out: str, prepared: dict[str, Any]) -> bool:
    if not storage.exists(storage.join(out, INDEX)):
        return False
    try:
        there = open_dataset(out).index.get("prepared")
    except DataError as error:
        raise DataError(
            f"{out} was prepared, but is damaged: {error}; restore it, or remove the folder and prepare it again"
        ) from error
    if there != prepared:
        raise DataError(
            f"{out} was prepared with other arguments ({there}, now {prepared}): give another --out, or remove it"
        )
    preparation.end(out)  # if it was killed between the index and its end
    return True


def _train_extractor(out: str, source: Source) -> dict[str, Any]:
    """Train the small classifier whose features the Frechet distance is measured in, and store it beside the shards."""
    assert source.labels is not None
    print("training the classifier whose features evaluation compares", flush=True)
    torch.set_num_threads(1)  # so that the bytes do not depend on the number of cores
    images = torch.from_numpy(np.stack([source.image(i) for i in range(source.count)]).transpose(0, 3, 1, 2).copy())
    classifier, accuracy = train_classifier(images, torch.from_numpy(source.labels), seed=SEED)
    data = save(classifier.state_dict())
    storage.write(storage.join(out, EXTRACTOR), data)
    return {"file": EXTRACTOR, "checksum": "xxh3:" + xxhash.xxh3_128_hexdigest(data), "accuracy": accuracy}


def _index(options: argparse.Namespace) -> None:
    with _bar(f"indexing {options.url}") as bar:
        index = index_shards(options.url, name=options.name, channels=options.channels, progress=bar.update)
    print(_summary(options.url, index))


def _summary(url: str, index: dict[str, Any]) -> str:
    size, classes = index["image_size"], f"{len(index['classes'])} classes" if index["labelled"] else "no labels"
    extractor = (
        f", classifier for evaluation {index['extractor']['accuracy']:.1%} right on held-out images"
        if index["extractor"]
        else ""
    )
    prepared = index["prepared"] or {}
    report = storage.join(url, preparation.REPORT)
    bad = f"; unreadable images were left out: {report}" if prepared and storage.exists(report) else ""
    images = f"{index['count']} images of {size}x{size}x{index['channels']} in {len(index['shards'])} shards"
    return f"{url}: {images}, {classes}{extractor}{bad}"


if __name__ == "__main__":
    cli.run(main)
