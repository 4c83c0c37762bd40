"""One's own images: a folder, or a zip file."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmdist.data.decode import EXTENSIONS, BadImageError
from cmdist.data.preparing.sources.base import Names, Picture, Source
from cmdist.data.preparing.sources.labels import Labelled, by_dataset_json, by_folder, class_names, parts_of
from cmdist.data.preparing.sources.listing import Listing, in_folder
from cmdist.data.preparing.sources.pictures import OWN, Reading, load, square, transform_of
from cmdist.data.preparing.sources.zips import in_zip
from cmdist.errors import DataError


def folder(
    path: str | Path,
    size: int | None = None,
    enlarge: bool = False,
    reading: Reading = OWN,
    classes: Path | None = None,
    unlabelled: bool = False,
) -> Source:
    """One's own images below `path` as RGB, labelled by a dataset.json, or else by sub-folders, if there are any.

    Where all images lie in one sub-folder and there in further ones, those are the classes: the first level at which
    paths part. They are in natural order, or in that of the file `classes`. Hidden files and folders are skipped, links
    are followed. With `size` every image is cropped to its centre square and resized as in ADM; without, all must be
    squares of one size, that of the first that can be read. Raises DataError for a folder without images, with some
    images outside of the class folders, with a class without images, or with a link to a folder that it is in.
    """
    return _source(in_folder(path), size, enlarge, reading, classes, unlabelled)


def zipped(
    path: str | Path,
    size: int | None = None,
    enlarge: bool = False,
    reading: Reading = OWN,
    classes: Path | None = None,
    unlabelled: bool = False,
) -> Source:
    """The images in a zip file, with the rules of `folder`. Raises DataError also as `in_zip`."""
    return _source(in_zip(path), size, enlarge, reading, classes, unlabelled)


def labelled(listing: Listing, classes: Path | None) -> Labelled:
    """The classes and labels of what is listed. Raises DataError."""
    order = class_names(classes) if classes else None
    if listing.json:
        table, read = listing.json
        base = "/".join(parts_of(table)[:-1])
        below = [(name, "/".join(parts_of(name)).removeprefix(f"{base}/" if base else "")) for name in listing.names]
        labelling = by_dataset_json(read(), [name for _, name in below], f"{listing.root}/{table}", order)
        if labelling is not None:
            return labelling
    labelling = by_folder(listing.names, listing.root, listing.folders, order)
    if classes and labelling.labels is None:
        raise DataError(f"{listing.root} has no sub-folders and no dataset.json, so --classes {classes} names nothing")
    return labelling


def _source(
    listing: Listing, size: int | None, enlarge: bool, reading: Reading, classes: Path | None, unlabelled: bool
) -> Source:
    if not listing.names:
        raise DataError(f"{listing.root} holds no images; files that end in {', '.join(EXTENSIONS)} are read")
    told = Labelled() if unlabelled else labelled(listing, classes)
    root, read = listing.root, listing.read
    packed = Names(os.fsencode(name) for name in listing.names)
    side = size or _side(listing, reading)

    def encoded(i: int) -> bytes:
        return read(i, os.fsdecode(packed[i]))

    def picture(i: int) -> Picture:
        return square(encoded(i), f"{root}/{os.fsdecode(packed[i])}", side, size is not None, enlarge, reading)

    def image(i: int) -> NDArray[np.uint8]:
        return picture(i).pixels

    return Source(
        name=listing.title,
        image_size=side,
        channels=3,
        transform=transform_of(size, enlarge),
        count=len(packed),
        image=image,
        labels=told.labels,
        classes=told.classes,
        passed_over=listing.others,
        fingerprint=packed.fingerprint(listing.numbers),
        modified=listing.modified,
        notes=(*listing.notes, *told.notes),
        picture=picture,
        encoded=encoded,
    )


def _side(listing: Listing, reading: Reading) -> int:
    """The shorter side of the first image that can be read; those before it are bad images like any others."""
    reason = ""
    for i, name in enumerate(listing.names):
        try:
            return min(load(listing.read(i, name), reading)[0].size)
        except BadImageError as error:
            reason = reason or str(error)
    raise DataError(
        f"none of the {len(listing.names)} images of {listing.root} can be read; {listing.names[0]}: {reason}"
    )
