"""Small JSON files that carry the checksum of their own content, so that a wrong byte in them is noticed too."""

import json
from typing import Any

import xxhash

from cmdist.errors import StoreError
from cmdist.system import storage

_READS = 5  # the way may be at fault, not the file


def seal(record: dict[str, Any]) -> bytes:
    """The file for a record: JSON with one more key."""
    return json.dumps(record | {"seal": _checksum(record)}, indent=1).encode()


def write(url: str, data: bytes) -> None:
    """Write what `seal` made, and make sure that it reads the same. Raises StoreError."""
    for _ in range(_READS):
        storage.write(url, data)
        if storage.read(url) == data:
            return
    raise StoreError(f"{url} does not read as it was written")


def read(url: str, must: bool = True) -> dict[str, Any]:
    """The record in a file. `must` off: one without a seal, of an older version, will do.

    Raises FileNotFoundError, and ValueError if the content is not what was sealed.
    """
    problem = ValueError()
    for _ in range(_READS):
        try:
            record = json.loads(storage.read(url))
            if not isinstance(record, dict):
                raise ValueError("keys and values are needed")
            return opened(record, must)
        except (ValueError, RecursionError) as error:
            if isinstance(error, OSError):
                raise
            problem = ValueError(str(error))
    raise problem


def opened(record: dict[str, Any], must: bool = True) -> dict[str, Any]:
    """A record without its seal. Raises ValueError if that is another's, or, with `must`, missing."""
    seal = record.pop("seal", None)
    if seal == _checksum(record) or (seal is None and not must):
        return record
    raise ValueError("its content is not what was written")


def _checksum(record: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(record, sort_keys=True).encode())
