"""Tar files in place: where each member lies. Nothing is unpacked."""

import errno
import tarfile
from typing import IO, NamedTuple

from cmdist.errors import DataError


class Member(NamedTuple):
    """A regular file in a tar, or something else (a link, a device) in it."""

    name: str
    offset: int  # from the beginning of the file that holds the tar
    size: int
    regular: bool


def members(file: IO[bytes], what: str, start: int = 0, stop: int | None = None) -> list[Member]:
    """The members of the uncompressed tar at bytes [start, stop) of a file, in their order, without folders.

    Raises DataError, naming `what`, if it is no tar, or is cut anywhere; tarfile itself takes one cut between two
    members for a whole one.
    """
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            found = [
                Member(m.name, m.offset_data, m.size, m.isreg() and not m.issparse())
                for m in tar.getmembers()
                if not m.isdir()
            ]
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # that of a size that no file has; others are the disk's
            raise
        raise DataError(f"{what} is truncated or no tar file: {error}") from error
    file.seek(end)
    if file.read(512) != bytes(512) or (stop is not None and end + 512 > stop):
        raise DataError(f"{what} is truncated or damaged: its end mark is missing at byte {end - start}")
    return found
