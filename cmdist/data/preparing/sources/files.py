"""One's own images: a folder, or a zip file that is read in place."""

import errno
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmdist.data.decode import EXTENSIONS, MAX_BYTES, BadImageError, load
from cmdist.data.preparing.sources.base import (
    Names,
    Source,
    by_folder,
    length_of,
    read_file,
    refuse_unsafe,
    square,
    transform_of,
)
from cmdist.errors import DataError

_READ = (*EXTENSIONS, "jpe", "jfif")
_OTHERS = ("gif", "bmp", "tif", "tiff", "heic", "avif", "jp2", "jxl")
_LOCAL = struct.Struct(
    "<4s5H3I2H"
)  # the header before each member of a zip file; its last two fields: lengths of name and extra field


def folder(path: str | Path, size: int | None = None, enlarge: bool = False) -> Source:
    """One's own images below `path` as RGB; sub-folders, if there are any, are the classes, in alphabetical order.

    Where all images lie in one sub-folder and there in further ones, those are the classes: the first level at which
    paths part. Hidden files and folders are skipped, links are followed. With `size` every image is cropped to its
    centre square and resized as in ADM; without, all must be squares of one size, that of the first that can be read.
    Raises DataError for a folder without images, with some images outside of the class folders, or with a link to a
    folder that it is in.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, with labels as sub-folders if there are any")
    found, others = _below(root)
    found.sort(key=lambda entry: entry[0].split("/"))
    names = [name for name, _ in found]
    sizes = [length for _, length in found]
    return _source(
        root.resolve().name, root, names, sizes, lambda i, name: read_file(root / name), size, enlarge, others
    )


def zipped(path: str | Path, size: int | None = None, enlarge: bool = False) -> Source:
    """The images in a zip file, with the rules of `folder`; members are stored or deflated.

    Raises DataError also for names that lead out of it, links, encrypted or differently compressed members, and those
    that expand to more than MAX_BYTES.
    """
    file = Path(path)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(
                (info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename.split("/")
            )
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, IndexError) as error:
        raise DataError(f"{file} cannot be read as a zip file: {error}") from error
    for info in infos:
        _refuse_member(info, file)
    others = sum(_ends_in(info.filename, _OTHERS) for info in infos)
    infos = [info for info in infos if _ends_in(info.filename, _READ)]
    places = np.array(
        [(i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type) for i in infos], np.int64
    ).reshape(-1, 5)
    names = [info.filename for info in infos]
    del infos  # half a kilobyte each
    number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    return _source(
        file.stem,
        file,
        names,
        places[:, 3],
        lambda i, name: _member(number, places[i].tolist(), f"{file}/{name}"),
        size,
        enlarge,
        others,
    )


def _source(
    title: str,
    root: Path,
    names: list[str],
    sizes: list[int] | NDArray[np.int64],
    read: Callable[[int, str], bytes],
    size: int | None,
    enlarge: bool,
    others: int,
) -> Source:
    if not names:
        raise DataError(f"{root} holds no images; files that end in {', '.join(EXTENSIONS)} are read")
    classes, labels = by_folder(names, root)
    packed = Names(os.fsencode(name) for name in names)
    side = size or _side(root, names, read)

    def image(i: int) -> NDArray[np.uint8]:
        name = os.fsdecode(packed[i])
        return square(read(i, name), f"{root}/{name}", side, size is not None, enlarge)

    return Source(
        name=title,
        image_size=side,
        channels=3,
        transform=transform_of(size, enlarge),
        count=len(packed),
        image=image,
        labels=labels,
        classes=classes,
        passed_over=others,
        fingerprint=packed.fingerprint(np.asarray(sizes, np.int64)),
    )


def _side(root: Path, names: list[str], read: Callable[[int, str], bytes]) -> int:
    """The shorter side of the first image that can be read; those before it are bad images like any others."""
    reason = ""
    for i, name in enumerate(names):
        try:
            return min(load(read(i, name), "RGB").size)
        except BadImageError as error:
            reason = reason or str(error)
    raise DataError(f"none of the {len(names)} images of {root} can be read; {names[0]}: {reason}")


def _below(root: Path) -> tuple[list[tuple[str, int]], int]:
    """(relative path, bytes) of each image, and the number of other pictures; links are followed."""
    found: list[tuple[str, int]] = []
    others = 0
    todo: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while todo:
        base, above = todo.pop()
        here = os.path.realpath(root / base)
        if here in above:
            raise DataError(
                f"{root / base} is a link to a folder that it lies in, so its images would have no end: remove the link"
            )
        with os.scandir(root / base) as entries:
            for entry in entries:
                name = f"{base}{entry.name}"
                if _is_folder(entry):
                    if not entry.name.startswith("."):
                        todo.append((f"{name}/", (*above, here)))
                elif _ends_in(name, _READ) and (length := length_of(entry)) is not None:
                    found.append((name, length))
                else:
                    others += _ends_in(name, _OTHERS)
    return found, others


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
            raise
        return False


def _ends_in(name: str, endings: Collection[str]) -> bool:
    """By its extension; what is hidden does not, e.g. ._a.png, which macOS puts into every zip file, or
    .ipynb_checkpoints/a.png.
    """
    if any(part.startswith(".") and part != "." for part in name.replace("\\", "/").split("/")):
        return False
    return os.path.splitext(name)[1].lower().lstrip(".") in endings


def _refuse_member(info: zipfile.ZipInfo, file: Path) -> None:
    refuse_unsafe(info.filename, file)
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        raise DataError(f"{file} holds a link '{info.filename}': links are refused")
    if not _ends_in(info.filename, _READ):
        return
    if info.flag_bits & 1:
        raise DataError(f"{file}/{info.filename} is encrypted; make a zip file without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{file}/{info.filename} is compressed by method {info.compress_type}; stored and deflated members are read"
        )
    if info.file_size > MAX_BYTES:
        raise DataError(f"{file}/{info.filename} expands to {info.file_size} bytes, {MAX_BYTES} are allowed")


def _member(number: int, place: list[int], where: str) -> bytes:
    """The bytes of one member by pread, since a ZipFile has one position for all processes; never more than its size in
    the directory.
    """
    offset, packed, size, checksum, method = place
    header = os.pread(number, _LOCAL.size, offset) if offset >= 0 else b""
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise DataError(f"{where} is not where the zip file's directory says: the file is damaged")
    name, extra = _LOCAL.unpack(header)[-2:]
    data = os.pread(number, packed, offset + _LOCAL.size + name + extra)
    try:
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-15).decompress(data, size + 1)
    except zlib.error as error:
        raise BadImageError(f"{where} is damaged in the zip file: {error}") from error
    if len(data) != size or zlib.crc32(data) != checksum:
        raise BadImageError(f"{where} is damaged in the zip file: its size or checksum is not that of the directory")
    return data
