"""Tar files in place: where each member lies. Nothing is unpacked."""

import errno
import tarfile
from typing import IO, NamedTuple

from cmdist.errors import DataError

_BLOCK = 512
_AT_ONCE = 2**20  # bytes


class Member(NamedTuple):
    """A regular file in a tar, or something else (a link, a device) in it."""

    name: str
    offset: int  # from the beginning of the file that holds the tar
    size: int
    regular: bool


def members(file: IO[bytes], what: str, start: int = 0, stop: int | None = None) -> list[Member]:
    """The members of the uncompressed tars at bytes [start, stop) of a file, in their order, without folders.

    Tars one behind the other (`cat a.tar b.tar`) are all read, though tar itself stops at the first end mark. Raises
    DataError, naming `what`, if it is no tar, or is cut anywhere; tarfile itself takes one cut between two members for
    a whole one.
    """
    listed: list[Member] = []
    place: int | None = start
    while place is not None:
        more, end = _one(file, what, place)
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK) or (stop is not None and end + _BLOCK > stop):
            raise DataError(f"{what} is truncated or damaged: its end mark is missing at byte {end - start}")
        listed += more
        place = _next(file, end + _BLOCK, stop)
    return listed


def _one(file: IO[bytes], what: str, place: int) -> tuple[list[Member], int]:
    """The members of the tar at `place`, and where its end mark must be."""
    file.seek(place)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            listed = [
                Member(m.name, m.offset_data, m.size, m.isreg() and not m.issparse())
                for m in tar.getmembers()
                if not m.isdir()
            ]
            return listed, tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # that of a size that no file has; others are the disk's
            raise
        raise DataError(f"{what} is truncated or no tar file: {error}") from error


def _next(file: IO[bytes], begin: int, stop: int | None) -> int | None:
    """Where the first block from `begin` lies that is not all zeros, which are how a tar is filled up."""
    file.seek(begin)
    place = begin
    while chunk := file.read(_AT_ONCE if stop is None else max(0, min(_AT_ONCE, stop - place))):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros == len(chunk):
            place += zeros
            continue
        return place + zeros // _BLOCK * _BLOCK
    return None
