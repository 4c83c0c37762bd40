"""A zip file of one's own images, read in place."""

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cmdist.data.decode import MAX_BYTES, BadImageError
from cmdist.data.preparing.sources.base import changed_at, refuse_irregular, refuse_unsafe
from cmdist.data.preparing.sources.labels import DATASET_JSON, parts_of
from cmdist.data.preparing.sources.listing import OTHERS, READ, Listing, ends_in, first_table, folders_of
from cmdist.errors import DataError

# the header before each member of a zip file; its last two fields: lengths of name and extra field
_LOCAL = struct.Struct("<4s5H3I2H")


def in_zip(path: str | Path) -> Listing:
    """The images in a zip file; of members of the same name the last one counts, as for unzip.

    Raises DataError for names that lead out of it, links, encrypted or differently compressed members, and those that
    expand to more than MAX_BYTES.
    """
    file = Path(path)
    refuse_irregular(file)
    try:
        with zipfile.ZipFile(file) as archive:
            every = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, IndexError) as error:
        raise DataError(f"{file} cannot be read as a zip file: {error}") from error
    latest = {tuple(parts_of(info.filename)): info for info in every if not info.is_dir()}
    infos = sorted(latest.values(), key=lambda info: info.filename.split("/"))
    for info in infos:
        _refuse_member(info, file)
    folders = folders_of([info.filename for info in every])
    twice = sum(not info.is_dir() for info in every) - len(infos)
    others = sum(ends_in(info.filename, OTHERS) for info in infos)
    table = first_table([info.filename for info in infos if parts_of(info.filename)[-1:] == [DATASET_JSON]])
    place = _place(latest[tuple(parts_of(table))]) if table else []
    infos = [info for info in infos if ends_in(info.filename, READ)]
    places = np.array([_place(info) for info in infos], np.int64).reshape(-1, 5)
    names = [info.filename for info in infos]
    del every, latest, infos  # half a kilobyte each
    number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    return Listing(
        title=file.stem,
        root=file,
        names=names,
        numbers=places[:, 3],
        modified=changed_at(file),
        read=lambda i, name: _member(number, places[i].tolist(), f"{file}/{name}"),
        others=others,
        folders=folders,
        json=(table, lambda: _member(number, place, f"{file}/{table}")) if table else None,
        notes=(f"{twice} names stand twice in {file}: the last file counts, as for unzip",) if twice else (),
    )


def _place(info: zipfile.ZipInfo) -> list[int]:
    return [info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type]


def _refuse_member(info: zipfile.ZipInfo, file: Path) -> None:
    refuse_unsafe(info.filename, file)
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        raise DataError(f"{file} holds a link '{info.filename}': links are refused")
    if not ends_in(info.filename, (*READ, "json")):
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
    """The bytes of one member by pread, since a ZipFile has one position for all processes;
    never more than its size in the directory.
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
