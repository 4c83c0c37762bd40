"""A preparation that may be interrupted, and shared out to many jobs:
its division, and one small record for each finished shard.

While it lasts the folder holds preparing.json (the division) and preparing/shard-NNNNNN.npz (what is known of a shard
that is there whole). Both are gone at the end. Shard and record are pure functions of the division and the source, so
anything may be killed and done again.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from cmdist.data.cache import checksum_of
from cmdist.data.index import INDEX, PREPARING
from cmdist.data.preparing.scan import Scan
from cmdist.data.preparing.sources.base import Source
from cmdist.errors import DataError
from cmdist.system import storage

PARTS = "preparing"  # the folder of records
REPORT = "unreadable.txt"

Bad = tuple[int, str]  # number of an image in its source, what is wrong with it
_ESCAPED = {ord(character): repr(character)[1:-1] for character in "\t\n\r"}


@dataclass(frozen=True)
class Division:
    """Everything that the bytes of the shards depend on, except for the source's own bytes."""

    described: dict[str, Any]  # as it goes into the index
    listing: str  # a hash of what the source has listed, labels included
    count: int
    seed: int
    per_shard: int
    encoding: str
    quality: int
    origin: dict[str, str] = field(default_factory=dict)  # what tells whether the source has changed since

    @property
    def shards(self) -> int:
        """Their number."""
        return -(-self.count // self.per_shard)

    @property
    def digest(self) -> str:
        """A hash of all of it but the origin, which may change where a file is put right."""
        content = {name: value for name, value in asdict(self).items() if name != "origin"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Finished(NamedTuple):
    """A shard that is there whole."""

    scan: Scan
    bad: list[Bad]
    treated: dict[str, int]  # how many images were turned, or laid on a background


def divide(
    source: Source,
    *,
    seed: int = 0,
    per_shard: int = 5000,
    encoding: str = "png",
    quality: int = 95,
    prepared: dict[str, Any] | None = None,
) -> Division:
    """The division to write `source`. `prepared` (what was asked for) goes into the index as it is."""
    described = {
        "name": source.name,
        "image_size": source.image_size,
        "channels": source.channels,
        "transform": source.transform + (f", then JPEG of quality {quality} (lossy)" if encoding == "jpg" else ""),
        "classes": list(source.classes),
        "labelled": source.labels is not None,
        "extractor": None,
        "prepared": prepared,
    }
    if encoding == "raw":
        described["encoding"] = encoding  # other encodings say themselves what they are
    labels = b"" if source.labels is None else np.ascontiguousarray(source.labels).tobytes()
    fingerprint = xxhash.xxh3_128_hexdigest(labels) + source.fingerprint
    origin = {"listing": fingerprint, "modified": source.modified, "sample": source.sample()}
    return Division(described, fingerprint, source.count, seed, per_shard, encoding, quality, origin)


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.tar"


def begin(url: str, division: Division) -> None:
    """Mark the folder as being prepared by this division. Many parts may do so at once.

    Raises DataError if it holds something that is not ours, or the beginnings of a preparation by another division.
    """
    names = [name for name in storage.names(url) if not name.startswith(".")]
    if PREPARING in names or storage.exists(storage.join(url, PREPARING)):
        there = read_division(url)
        if there.digest == division.digest:
            return
        if any(name.endswith(".tar") for name in names):  # before the first shard a division may still change
            raise DataError(
                f"{url} holds a half-finished preparation of another source or with other options "
                f"({_difference(there, division)}): "
                "repeat it with those, give another --out, or remove the folder"
            )
    elif names:
        raise DataError(f"{url} is not empty and holds no prepared data set; give another --out")
    if REPORT in names:  # of another division
        storage.remove(storage.join(url, REPORT))
    storage.write(storage.join(url, PREPARING), json.dumps(asdict(division)).encode())


def read_division(url: str) -> Division:
    """The division of the preparation that is going on. Raises DataError if there is none."""
    where = storage.join(url, PREPARING)
    try:
        return Division(**json.loads(storage.read(where)))
    except FileNotFoundError as error:
        raise DataError(f"no preparation is going on at {url}: {PREPARING} is missing") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} is damaged or of another version; remove {url} and prepare it again") from error


def _difference(there: Division, now: Division) -> str:
    a, b = ({**asdict(each), **each.described, **(each.described["prepared"] or {})} for each in (there, now))
    names = [key for key in sorted({*a, *b} - {"described", "prepared", "origin"}) if a.get(key) != b.get(key)]
    shown = [f"{key}: {a.get(key)!r} there, {b.get(key)!r} now" for key in names if key not in ("listing", "classes")]
    return "; ".join(shown) or "the source's files or labels have changed"


def save(url: str, division: Division, number: int, done: Finished) -> None:
    """Record that a shard is there whole."""
    scan = done.scan
    content = {"plan": division.digest, "entry": scan.entry, "bad": done.bad, "treated": done.treated}
    known = json.dumps(content).encode()
    buffer = io.BytesIO()
    np.savez(buffer, known=np.frombuffer(known, np.uint8), **scan.samples)  # type: ignore[arg-type]
    data = buffer.getvalue()
    storage.write(_record(url, number), xxhash.xxh3_128_digest(data) + data)


def load(url: str, division: Division, number: int, verify: bool) -> Finished | None:
    """What is known of a shard, or None if it is not there whole.

    With `verify`, a shard on a disk is read to compare its checksum, and one without a readable image is not there: to
    be tried again.
    """
    try:
        record = storage.read(_record(url, number))
    except FileNotFoundError:
        return None
    if xxhash.xxh3_128_digest(record[16:]) != record[:16]:
        return None
    with np.load(io.BytesIO(record[16:]), allow_pickle=False) as file:
        samples = {name: file[name] for name in file.files}
    known = json.loads(samples.pop("known").tobytes())
    entry = known["entry"]
    if known["plan"] != division.digest or not _is_there(storage.join(url, shard_name(number)), entry, verify):
        return None
    scan = Scan(entry, samples, division.described["image_size"], division.encoding == "raw")
    return Finished(scan, [(i, text) for i, text in known["bad"]], known.get("treated", {}))


def _is_there(url: str, entry: dict[str, Any], verify: bool) -> bool:
    if not entry["count"]:  # all its images were bad: it was not written
        return not verify
    try:
        if storage.size(url) != entry["size"]:
            return False
    except FileNotFoundError:
        return False
    local = storage.local_path(url)
    return not (verify and local) or checksum_of(local) == entry["checksum"]


def report_so_far(url: str, bad: list[Bad]) -> str:
    """Add to the report of a preparation that is refused, which other parts may have begun; a finished one is left.
    Returns its URL.
    """
    where = storage.join(url, REPORT)
    if storage.exists(storage.join(url, INDEX)):
        return where
    rows = storage.read(where).decode(errors="replace").splitlines() if storage.exists(where) else []
    there = [(int(i), text) for i, tab, text in (row.partition("\t") for row in rows) if tab and i.isdigit()]
    return report(url, list({*there, *((i, _printable(text)) for i, text in bad)}))


def report(url: str, bad: list[Bad]) -> str:
    """Write the report of unreadable images, in their order in the source, one line for each, and return its URL;
    none bad, no report.
    """
    where = storage.join(url, REPORT)
    lines = [f"{i}\t{_printable(text)}\n" for i, text in sorted(bad)]
    if lines:
        storage.write(where, "".join(lines).encode())
    elif storage.exists(where):
        storage.remove(where)
    return where


def _printable(text: str) -> str:
    """On one line and in one column; file names need not be UTF-8."""
    return text.translate(_ESCAPED).encode(errors="backslashreplace").decode()


def end(url: str) -> None:
    """Remove what only an unfinished preparation needs, the marker last;
    nothing happens to a folder without an index.
    """
    if not storage.exists(storage.join(url, INDEX)):
        return
    names = storage.names(url)
    for name in [
        PARTS,
        *(name for name in names if name.startswith((".shard-", ".index", f".{PREPARING}"))),
        PREPARING,
    ]:
        if name in names:  # the hidden ones are what a killed process was writing
            storage.remove(storage.join(url, name))


def _record(url: str, number: int) -> str:
    return storage.join(url, PARTS, shard_name(number).replace(".tar", ".npz"))
