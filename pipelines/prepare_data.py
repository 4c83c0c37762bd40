"""Turn images into a data set folder of WebDataset shards and an index.

python pipelines/prepare_data.py digits --out data/digits
python pipelines/prepare_data.py folder ~/pictures --size 64 --out data/pictures     (labels: the names of sub-folders, if any)
python pipelines/prepare_data.py shards s3://bucket/folder --name pictures           (WebDataset shards that are there already)
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save
from tqdm import tqdm

from cmdist import cli, storage
from cmdist.data import datasets
from cmdist.data.images import INDEX, PREPARING
from cmdist.data.shards import index_shards, write_dataset
from cmdist.errors import ConfigError, DataError
from cmdist.nets.classifier import train_classifier

EXTRACTOR = "extractor.safetensors"
SEED = 0


def main(arguments: Sequence[str]) -> None:
    """Prepare what the command line asks for, or say that it is there."""
    options = _parser().parse_args(arguments)
    if options.source == "shards":
        return _index(options)
    out, prepared = options.out, _prepared(options)
    if _finished(out, prepared):
        print(f"{out} is prepared already")
        return None
    source = datasets.digits() if options.source == "digits" else datasets.folder(options.path, options.size)
    _start_afresh(out, prepared)
    extractor = _train_extractor(out, source) if options.source == "digits" else None
    with tqdm(total=source.count, desc=f"{source.name} -> {out}", unit=" images") as bar:
        index = write_dataset(
            out, source, seed=SEED, per_shard=options.per_shard, extractor=extractor, prepared=prepared, progress=bar.update
        )
    print(_summary(out, index))
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = _refuse  # type: ignore[method-assign,assignment]
    sources = parser.add_subparsers(dest="source", required=True)
    digits = sources.add_parser("digits", help="scikit-learn's 1,797 handwritten digits, 8x8 grey; nothing is downloaded")
    folder = sources.add_parser("folder", help="your own images, as RGB")
    folder.add_argument("path", type=Path)
    folder.add_argument("--size", type=int, help="crop to the centre square and resize to so many pixels; default: leave as it is")
    shards = sources.add_parser("shards", help="index WebDataset shards where they are")
    shards.add_argument("url")
    shards.add_argument("--name", default="shards")
    shards.add_argument("--channels", type=int, choices=(1, 3), default=3)
    for sub, per_shard in ((digits, 200), (folder, 5000)):
        sub.add_argument("--out", required=True, help="folder or URL of the data set")
        sub.add_argument("--per-shard", type=int, default=per_shard, help="images in a shard (default %(default)s)")
    for sub in (digits, folder, shards):
        sub.error = _refuse  # type: ignore[method-assign,assignment]
    return parser


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}; see pipelines/prepare_data.py --help")


def _prepared(options: argparse.Namespace) -> dict[str, Any]:
    if options.per_shard < 1 or (options.source == "folder" and options.size is not None and options.size < 1):
        raise ConfigError("--per-shard and --size must be 1 or more")
    arguments = {"source": options.source, "per_shard": options.per_shard, "seed": SEED}
    if options.source == "folder":
        arguments |= {"path": str(options.path.resolve()), "size": options.size}
    return arguments


def _finished(out: str, prepared: dict[str, Any]) -> bool:
    if not storage.exists(storage.join(out, INDEX)):
        return False
    there = json.loads(storage.read(storage.join(out, INDEX))).get("prepared")
    if there != prepared:
        raise DataError(f"{out} was prepared with other arguments ({there}, now {prepared}): give another --out, or remove it")
    return True


def _start_afresh(out: str, prepared: dict[str, Any]) -> None:
    """Mark `out` as being prepared; what an interrupted preparation left is removed, anything else is not ours to touch."""
    names = storage.names(out)
    if names and PREPARING not in names:
        raise DataError(f"{out} is not empty and holds no prepared data set; give another --out")
    for name in names:
        if name != PREPARING:
            storage.remove(storage.join(out, name))
    storage.write(storage.join(out, PREPARING), json.dumps(prepared).encode())


def _train_extractor(out: str, source: datasets.Source) -> dict[str, Any]:
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
    with tqdm(desc=f"indexing {options.url}", unit=" images") as bar:
        index = index_shards(options.url, name=options.name, channels=options.channels, progress=bar.update)
    print(_summary(options.url, index))


def _summary(url: str, index: dict[str, Any]) -> str:
    size, classes = index["image_size"], f"{len(index['classes'])} classes" if index["labelled"] else "no labels"
    extractor = f", classifier for evaluation {index['extractor']['accuracy']:.1%} right on held-out images" if index["extractor"] else ""
    return f"{url}: {index['count']} images of {size}x{size}x{index['channels']} in {len(index['shards'])} shards, {classes}{extractor}"


if __name__ == "__main__":
    cli.run(main)
