"""Turn images into a data set folder of WebDataset shards and an index.

python pipelines/prepare_data.py digits --out data/digits
python pipelines/prepare_data.py lsun bedroom_train_lmdb --size 256 --out s3://bucket/bedroom
python pipelines/prepare_data.py imagenet ILSVRC2012_img_train.tar --size 64 --enlarge --out data/imagenet64     (or the
folder of synsets)
python pipelines/prepare_data.py imagenet64 FOLDER_OF_NPZ --class-map map_clsloc.txt --out data/imagenet64-official
python pipelines/prepare_data.py cifar10 cifar-10-binary.tar.gz --out data/cifar10
python pipelines/prepare_data.py font NotoColorEmoji.ttf --size 32 --out data/emoji
python pipelines/prepare_data.py folder ~/pictures --out data/pictures --check       (what is odd, and what would work)
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from cmdist.data.decode import ENCODINGS, MAX_PIXELS
from cmdist.data.preparing.indexing import chosen_of, index_shards
from cmdist.data.preparing.look import MOST_PIXELS, look
from cmdist.data.preparing.prepare import (
    SEED,
    Writing,
    bar,
    finish_parts,
    prepare,
    prepare_digits,
    summary,
    warn,
)
from cmdist.data.preparing.sources.base import MOST_CLASSES, Source
from cmdist.data.preparing.sources.cifar10 import cifar10
from cmdist.data.preparing.sources.files import folder, zipped
from cmdist.data.preparing.sources.font import font
from cmdist.data.preparing.sources.imagenet import SYNSETS, imagenet
from cmdist.data.preparing.sources.imagenet64 import BATCHES, imagenet64
from cmdist.data.preparing.sources.labels import class_names
from cmdist.data.preparing.sources.lsun import lsun
from cmdist.data.preparing.sources.pictures import Reading, html
from cmdist.errors import ConfigError
from cmdist.nets.classifier import train_classifier
from cmdist.system import cli, jobs, urls

MOST_WORKERS = 1024
QUALITY = 95  # of jpg
LARGEST = math.isqrt(MAX_PIXELS)  # pixels of a side


_OWN = ("path", "size", "enlarge", "reading", "classes", "unlabelled")
# what makes each source, and its arguments
SOURCES: dict[str, tuple[Callable[..., Source], tuple[str, ...]]] = {
    "lsun": (lsun, ("path", "size", "enlarge")),
    "imagenet": (imagenet, ("path", "size", "synsets", "enlarge")),
    "imagenet64": (imagenet64, ("path", "batches", "class_map")),
    "cifar10": (cifar10, ("path", "split")),
    "font": (font, ("path", "size", "split", "background")),
    "folder": (folder, _OWN),
    "zip": (zipped, _OWN),
}
OWN = ("folder", "zip")
# what decides how to write, not what
_NOT_STORED = ("out", "workers", "part", "finish", "max_bad", "check")


def main(arguments: Sequence[str]) -> None:
    """Prepare what the command line asks for, or say that it is there."""
    given = vars(_parser().parse_args(arguments))
    _check(given)
    source, out = given["source"], given["out"]
    if source == "shards":
        _index(given["url"], given["name"], given["channels"], given["classes"], given["label_key"], given["max_bad"])
        return
    how = Writing(
        _settings(given),
        given["per_shard"],
        given.get("format", "png"),
        given.get("quality") or QUALITY,
        given.get("workers", 1),
        given.get("max_bad", 0),
    )
    if source == "digits":
        print(prepare_digits(out, how, train_classifier))
        return
    maker, names = SOURCES[source]
    if source in OWN:
        reading = Reading(not given["ignore_rotation"], given["background"], given["max_pixels"] or MAX_PIXELS)
        given = given | {"reading": reading}
    known = {name: given[name] for name in names}
    if given.get("check"):
        print(look(source, out, **known))
    elif given["finish"]:
        print(finish_parts(out, how))
    else:
        print(prepare(out, lambda: maker(**known), how, jobs.part_of(given["part"], os.environ)))


def _index(url: str, name: str, channels: int, classes: Path | None, label_key: str | None, max_bad: int) -> None:
    names = class_names(classes) if classes else ()
    with bar(f"indexing {url}") as shown:
        index = index_shards(
            url,
            name=name,
            channels=channels,
            classes=names,
            label_key=label_key,
            max_bad=max_bad,
            progress=shown.update,
            say=warn,
        )
    print(summary(chosen_of(url)[0], index))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="prepare_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        "font": sources.add_parser("font", help="the colour bitmaps of a font, such as Noto Color Emoji"),
        "folder": sources.add_parser("folder", help="your own images, as RGB"),
        "zip": sources.add_parser("zip", help="a zip file of your own images, as RGB"),
    }
    shards = sources.add_parser("shards", help="index WebDataset shards where they are")
    shards.add_argument("url", type=_not_empty, help="a folder of them, one, or a pattern: FOLDER/{00000..00003}.tar")
    shards.add_argument("--name", default="shards")
    shards.add_argument("--channels", type=int, choices=(1, 3), default=3)
    shards.add_argument(
        "--label-key", metavar="KEY", help="labels are under this key of the .json members, not in .cls members"
    )
    shards.set_defaults(out=None, per_shard=1)
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
    for name in ("cifar10", "font"):
        sub[name].add_argument("--split", choices=("train", "test"), default="train")
    sub["font"].add_argument("--size", type=int, help="resize to so many pixels (default: leave as they are)")
    for name in ("font", *OWN):
        _add_background(sub[name])
    for name in OWN:
        _add_own(sub[name])
    for owner in (shards, *(sub[name] for name in OWN)):
        owner.add_argument("--classes", type=Path, help="a file with the name of a class on each line, by label")
    for owner in (shards, *(sub[name] for name in SOURCES)):
        owner.add_argument(
            "--max-bad", type=int, default=0, help="unreadable images to leave out and report (default %(default)s)"
        )
    for name in SOURCES:
        sub[name].add_argument(
            "--format",
            choices=ENCODINGS,
            default="webp",
            help="of the images in shards; all but jpg are lossless (webp)",
        )
        sub[name].add_argument("--quality", type=int, help="of jpg (default 95)")
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
    for name, parsed in sub.items():
        parsed.add_argument("--out", required=True, type=_not_empty, help="folder or URL of the data set")
        per_shard = 200 if name == "digits" else 5000
        parsed.add_argument("--per-shard", type=int, default=per_shard, help="images in a shard (default %(default)s)")
    for each in (parser, shards, *sub.values()):
        each.error = _refuse  # type: ignore[method-assign,assignment]
    return parser


def _add_background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--background",
        type=_colour,
        default=_colour("white"),
        help="the colour behind transparent parts, a name or #rrggbb (default white)",
    )


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore-rotation", action="store_true", help="do not turn photos upright, as their EXIF data say"
    )
    parser.add_argument("--max-pixels", type=int, help=f"of an image, else it counts as bad (default {MAX_PIXELS})")
    parser.add_argument("--unlabelled", action="store_true", help="no classes, whatever folders there are")
    parser.add_argument(
        "--check", action="store_true", help="only look at all images, list what is odd, and say what would work"
    )


def _colour(text: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no colour; give a name like white, or #rrggbb") from error


def _not_empty(text: str) -> str:
    if not text.strip():  # an unset variable of the shell; it would mean the root or the folder that we are in
        raise argparse.ArgumentTypeError("it is empty; a path is needed")
    return text


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}; see pipelines/prepare_data.py --help")


def _check(given: Mapping[str, Any]) -> None:
    for name in ("out", "url"):
        urls.refuse_secrets(given.get(name) or "")
    size = given.get("size")
    if given["per_shard"] < 1 or (size is not None and size < 1):
        raise ConfigError("--per-shard and --size must be 1 or more")
    if not 1 <= given.get("synsets", 1) <= MOST_CLASSES or not 1 <= given.get("batches", 1) <= MOST_CLASSES:
        raise ConfigError(f"--synsets and --batches must be 1 or more, at most {MOST_CLASSES}")
    if (size or 1) > LARGEST:
        raise ConfigError(f"--size {size}: at most {LARGEST} pixels are allowed")
    if not 1 <= given.get("workers", 1) <= MOST_WORKERS:
        raise ConfigError(f"--workers must be 1 or more, at most {MOST_WORKERS}")
    if given.get("max_bad", 0) < 0 or not 1 <= (given.get("quality") or 1) <= 100:
        raise ConfigError("--max-bad must be 0 or more, --quality 1 to 100")
    if (pixels := given.get("max_pixels")) is not None and not 1 <= pixels <= MOST_PIXELS:
        raise ConfigError(f"--max-pixels {pixels}: 1 to {MOST_PIXELS} are allowed")
    if given.get("unlabelled") and given.get("classes"):
        raise ConfigError("--unlabelled and --classes contradict each other")
    if (given["out"] or "").startswith("memory:") and given.get("workers", 1) > 1:
        raise ConfigError(
            f"--out {given['out']}: memory is shared by no processes and ends with this one; it needs --workers 1"
        )
    if given.get("quality") is not None and given["format"] != "jpg":
        raise ConfigError("--quality is of --format jpg; the others are lossless")
    if given.get("check") and (given["part"] or given["finish"]):
        raise ConfigError("--check only looks: it goes without --part and --finish")
    if given.get("enlarge") and size is None:
        raise ConfigError("--enlarge needs --size")
    if given.get("finish") and given["part"]:
        raise ConfigError("--finish comes after all parts: give it or --part")


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, as it is kept in the index; switches that are off are left out."""
    settings: dict[str, Any] = {"source": given["source"], "per_shard": given["per_shard"], "seed": SEED}
    for name, value in given.items():
        if name not in (*settings, *_NOT_STORED) and (value not in (None, False) or name == "size"):
            settings[name] = str(value.resolve()) if isinstance(value, Path) else value
    if "background" in settings:
        settings["background"] = html(settings["background"])
    if settings.get("format") == "jpg":
        settings["quality"] = given["quality"] or QUALITY
    return settings


if __name__ == "__main__":
    cli.run(main)
