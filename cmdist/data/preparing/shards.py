"""The data set folder: WebDataset shards (tar files of key.png, key.cls),
index.npz (where each image lies) and index.json, written last.

A folder without index.json is no data set. Tars are never unpacked, and only image and label members are ever looked
into.
"""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
import xxhash
from numpy.typing import NDArray

from cmdist.data.decode import BadImageError, encode
from cmdist.data.index import FORMAT, INDEX, SAMPLES
from cmdist.data.order import permutation
from cmdist.data.preparing import preparation, workers
from cmdist.data.preparing.preparation import Bad, Division, Finished
from cmdist.data.preparing.scan import Scan, nothing, scan_shard
from cmdist.data.preparing.sources.base import Pixels, Source
from cmdist.data.preparing.workers import Progress, Tally
from cmdist.errors import DataError
from cmdist.system import scratch, storage


def write_dataset(
    url: str,
    source: Source,
    *,
    seed: int = 0,
    per_shard: int = 5000,
    extractor: dict[str, Any] | None = None,
    prepared: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a source in one go as shards of equal size (within one image) of PNGs, shuffled once by `seed`,
    and return the index.

    The same arguments give the same bytes. `extractor` (a file that lies there already) and `prepared` (what made this)
    go into the index as they are. Raises DataError for an empty source or an image that is not what the source says.
    """
    division = preparation.divide(source, seed=seed, per_shard=per_shard, prepared=prepared)
    write_shards(url, source, division, progress=progress)
    return finish(url, division, extractor)


def write_shards(
    url: str,
    source: Source,
    division: Division,
    *,
    part: tuple[int, int] = (1, 1),
    processes: int = 1,
    max_bad: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write the shards of a division that are not there yet, or the k-th of n parts of them, in some processes.

    Shard s holds what `division` says whoever writes it: every n-th shard belongs to a part, images are shuffled over
    all shards. An image that cannot be read is left out of its shard. Raises DataError for an empty source, an image
    that is not what the source says, and once more than `max_bad` images could not be read.
    """
    if source.count == 0:
        raise DataError(f"{source.name} is empty: there is nothing to write to {url}")
    order = permutation(division.count, division.seed, "write")
    ids = np.array_split(order, division.shards)

    def write(number: int, tally: Tally) -> None:
        if there := preparation.load(url, division, number, verify=True):
            tally.add(len(ids[number]), len(there.bad))
            _check_bad(tally.bad, max_bad, there.bad)
            return
        with scratch.folder() as temporary:
            path = temporary / preparation.shard_name(number)
            bad, treated = _write_tar(path, source, division, ids[number], max_bad, tally)
            if len(bad) == len(ids[number]):
                scan = nothing(path.name, source.image_size, division.encoding == "raw")
            else:
                scan = scan_shard(path, source.image_size, source.channels)
            tally.add(0)  # a worker whose parent is gone ends here
            if scan.entry["count"]:
                storage.upload(path, storage.join(url, path.name))
            elif storage.exists(storage.join(url, path.name)):  # of an attempt that could read some
                storage.remove(storage.join(url, path.name))
        tally.add(0)
        preparation.save(url, division, number, Finished(scan, bad, treated))

    storage.forget()  # what follows may fork
    try:
        workers.run(range(part[0] - 1, division.shards, part[1]), write, processes, progress)
    except _TooManyBad as error:
        done = [each for there in _finished(url, division) if there for each in there.bad]
        raise error.sentence(preparation.report_so_far(url, [*done, *error.bad])) from error


class _TooManyBad(DataError):
    """Raised where an image is found to be bad, in whatever process; its sentence comes when the report is written."""

    def __init__(self, bad: list[Bad], count: int, allowed: int) -> None:
        super().__init__(bad, count, allowed)
        self.bad, self._count, self._allowed = bad, count, allowed

    def sentence(self, report: str) -> DataError:
        return DataError(
            f"{self.bad[-1][1]} ({self._count} unreadable images by now, {self._allowed} allowed: "
            f"see {report}, and --max-bad)"
        )


def _check_bad(count: int, allowed: int, bad: list[Bad]) -> None:
    """Raise for the latest of the bad images that this shard has, if there are any."""
    if count > allowed and bad:
        raise _TooManyBad(bad, count, allowed)


def _write_tar(
    path: Path, source: Source, division: Division, ids: NDArray[np.int64], max_bad: int, tally: Tally
) -> tuple[list[Bad], dict[str, int]]:
    """The images that could not be read, and how many of the others were treated how."""
    bad: list[Bad] = []
    treated: Counter[str] = Counter()
    with open(path, "wb") as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
        for i in ids.tolist():
            try:
                picture = source.read(i)
                tar.write(_sample(source, division, i, picture.pixels))
                treated.update(picture.treated)
                tally.add(1)
            except BadImageError as error:
                bad.append((i, str(error)))
                tally.add(1, 1)
                _check_bad(tally.bad, max_bad, bad)
    return bad, dict(treated)


def _sample(source: Source, division: Division, i: int, pixels: Pixels) -> dict[str, Any]:
    expected = (source.image_size, source.image_size, source.channels)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise DataError(f"image {i} of {source.name} is {pixels.shape} {pixels.dtype}, not {expected} uint8")
    sample = {"__key__": f"{i:08d}", division.encoding: encode(pixels, division.encoding, division.quality)}
    if source.labels is not None:
        sample["cls"] = str(int(source.labels[i])).encode()
    return sample


def _finished(url: str, division: Division) -> list[Finished | None]:
    return [preparation.load(url, division, number, verify=False) for number in range(division.shards)]


def finish(url: str, division: Division, extractor: dict[str, Any] | None = None, max_bad: int = 0) -> dict[str, Any]:
    """Write the index of a division whose shards are all there, and the report of unreadable images, if any;
    needs neither source nor shards.

    A shard of which no image could be read has no place in the index. Raises DataError if shards are missing, or if
    more than `max_bad` images, or all, could not be read.
    """
    finished = _finished(url, division)
    missing = [preparation.shard_name(number) for number, there in enumerate(finished) if there is None]
    bad = sorted(each for there in finished if there for each in there.bad)
    scans = [there.scan for there in finished if there and there.scan.entry["count"]]
    if missing:
        raise DataError(
            f"{len(missing)} of {division.shards} shards of {url} are not finished, e.g. {missing[0]}: run "
            "the parts that write them"
        )
    where = preparation.report(url, bad)
    if len(bad) > max_bad:
        raise _TooManyBad(bad, len(bad), max_bad).sentence(where)
    if not scans:
        raise DataError(
            f"none of the {division.count} images of {division.described['name']} could be read: see {where}"
        )
    treated = sum((Counter(there.treated) for there in finished if there), Counter())
    index = write_index(url, division.described | {"extractor": extractor, "origin": division.origin | treated}, scans)
    preparation.end(url)
    return index


def write_index(url: str, described: dict[str, Any], scans: list[Scan]) -> dict[str, Any]:
    """Write what is known of the shards beside them, the index last, and return it."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.concatenate([scan.samples[name] for scan in scans]) for name in scans[0].samples})  # type: ignore[arg-type]
    storage.write(storage.join(url, SAMPLES), buffer.getvalue())
    shards = [scan.entry for scan in scans]
    index = {
        "format": FORMAT,
        **described,
        "count": sum(entry["count"] for entry in shards),
        "samples": {"file": SAMPLES, "checksum": "xxh3:" + xxhash.xxh3_128_hexdigest(buffer.getvalue())},
        "shards": shards,
    }
    storage.write(storage.join(url, INDEX), json.dumps(index, indent=1).encode())
    return index
