"""ImageNet (ILSVRC 2012), as published:
the train folder of synset folders, or ILSVRC2012_img_train.tar, read in place.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmdist.data.preparing.sources.base import (
    Names,
    Source,
    changed_at,
    check_length,
    read_file,
    refuse_unsafe,
    stat_of,
)
from cmdist.data.preparing.sources.pictures import square, transform_of
from cmdist.data.tars import Member, members
from cmdist.errors import DataError

SYNSETS = 1000
_SYNSET = re.compile(r"n\d{8}")


def imagenet(path: str | Path, size: int = 64, synsets: int = SYNSETS, enlarge: bool = False) -> Source:
    """The training images, cropped to `size` as in ADM;
    the label is the place of the synset in their sorted list, as in ADM.

    Raises DataError if there are not exactly `synsets` synsets (labels would shift), for an empty synset, for anything
    that lies in no synset, and for tars that are truncated or hold links or unsafe names.
    """
    root = Path(path)
    if root.is_dir():
        return _source(root, *_in_folders(root, synsets), size, enlarge)
    if root.is_file():
        return _source(root, *_in_tar(root, synsets), size, enlarge)
    raise DataError(f"{root} is not there; give ImageNet's train folder or ILSVRC2012_img_train.tar")


# synsets, labels, sizes, when they were changed, names
Listing = tuple[list[str], NDArray[np.int64], NDArray[np.int64], str, list[bytes], Callable[[int, str], bytes]]


def _source(
    root: Path,
    synsets: list[str],
    labels: NDArray[np.int64],
    sizes: NDArray[np.int64],
    modified: str,
    names: list[bytes],
    read: Callable[[int, str], bytes],
    size: int,
    enlarge: bool,
) -> Source:
    packed = Names(names)

    def encoded(i: int) -> bytes:
        return read(i, os.fsdecode(packed[i]))

    def image(i: int) -> NDArray[np.uint8]:
        return square(encoded(i), f"{root}/{os.fsdecode(packed[i])}", size, True, enlarge).pixels

    return Source(
        name="imagenet",
        image_size=size,
        channels=3,
        transform=transform_of(size, enlarge),
        count=len(packed),
        image=image,
        labels=labels,
        classes=tuple(synsets),
        fingerprint=packed.fingerprint(sizes),
        modified=modified,
        encoded=encoded,
    )


def _in_folders(root: Path, expected: int) -> Listing:
    synsets = sorted(entry.name for entry in os.scandir(root))
    _check_synsets(
        root, synsets, expected, "the train folder holds one folder for each synset, e.g. n01440764, and nothing else"
    )
    names, labels, sizes, times = [], [], [], []
    for label, synset in enumerate(synsets):
        if not (root / synset).is_dir():
            raise DataError(f"{root / synset} is not a folder: the train folder holds one folder for each synset")
        with os.scandir(root / synset) as entries:
            listed = sorted((entry.name, stat_of(entry)) for entry in entries)
        for name, file in listed:
            if file is None:
                raise DataError(f"{root / synset / name} is not a file: a synset folder holds images only")
            names.append(os.fsencode(f"{synset}/{name}"))
            sizes.append(file.size)
            times.append(file.modified)
        labels += [label] * _filled(root / synset, len(listed))
    numbers = np.array(labels, np.int64), np.array(sizes, np.int64)
    return synsets, *numbers, changed_at(times), names, lambda i, name: read_file(root / name)


def _in_tar(root: Path, expected: int) -> Listing:
    with open(root, "rb") as file:
        outer = {}
        for member in members(file, str(root)):
            _check_member(member, root)
            synset = member.name.removeprefix("./").removesuffix(".tar")
            if synset in outer:
                raise DataError(f"{root} holds '{member.name}' twice; each synset has one tar")
            outer[synset] = member
        synsets = sorted(outer)
        _check_synsets(
            root, synsets, expected, "it holds one tar for each synset, e.g. n01440764.tar, and nothing else"
        )
        names: list[bytes] = []
        labels, places = [], []
        for label, synset in enumerate(synsets):
            member = outer[synset]
            what = f"{root}/{member.name}"
            inner = sorted(
                members(file, what, member.offset, member.offset + member.size), key=lambda m: m.name.removeprefix("./")
            )
            for image in inner:
                _check_member(image, what)
                if names and names[-1] == os.fsencode(f"{synset}/{image.name.removeprefix('./')}"):
                    raise DataError(f"{what} holds '{image.name}' twice")
                names.append(os.fsencode(f"{synset}/{image.name.removeprefix('./')}"))
                places.append((image.offset, image.size))
            labels += [label] * _filled(what, len(inner))
    where = np.array(places, np.int64)
    number = os.open(root, os.O_RDONLY | os.O_CLOEXEC)

    def read(i: int, name: str) -> bytes:
        offset, length = where[i].tolist()
        check_length(length, f"{root}/{name}")
        return os.pread(number, length, offset)

    return synsets, np.array(labels, np.int64), where[:, 1], changed_at(root), names, read


def _check_synsets(root: Path, synsets: list[str], expected: int, rule: str) -> None:
    if strange := [name for name in synsets if not _SYNSET.fullmatch(name)]:
        raise DataError(f"{root} holds '{strange[0]}', which is no synset, so its images have no label: {rule}")
    if len(synsets) != expected:
        raise DataError(
            f"{root} holds {len(synsets)} synsets, not {expected}, so labels would not be ImageNet's; complete it, "
            f"or give --synsets {len(synsets)} for a part of ImageNet"
        )


def _check_member(member: Member, where: object) -> None:
    refuse_unsafe(member.name, where)
    if not member.regular:
        raise DataError(f"{where} holds '{member.name}', a link or another thing that is not a file: refused")


def _filled(synset: object, count: int) -> int:
    if not count:
        raise DataError(f"{synset} holds no images")
    return count
