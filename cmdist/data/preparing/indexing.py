"""WebDataset shards that are there already, made a data set: read once, checked, and indexed where they are."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cmdist.data.index import INDEX, PREPARING, SAMPLES, SHARD_NAME
from cmdist.data.preparing.preparation import REPORT, report
from cmdist.data.preparing.scan import Scan, scan_shard
from cmdist.data.preparing.shards import write_index
from cmdist.data.preparing.workers import Progress
from cmdist.errors import DataError
from cmdist.system import scratch, storage

_NUMBER = re.compile(r"(.*?)(\d+)([^\d]*)", re.DOTALL)


def index_shards(
    url: str,
    *,
    name: str = "shards",
    channels: int = 3,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Make a data set of WebDataset shards that are there already (all .tar files of a folder):
    read them, write the index beside them.

    Labels are the numbers in the .cls members, if there are any. Every image is decoded once: at most `max_bad` that
    cannot be, or of which a part is missing, are left out and named in a report. What else the folder holds is told to
    `say`. Raises DataError for shards that are empty, truncated or damaged, members that are pickles, samples without
    image or label, images of several sizes, raw ones beside others, more bad images, and a folder that has an index or
    is being prepared.
    """
    names = _shards_of(url, say)
    scans: list[Scan] = []
    bad: list[str] = []
    local = storage.local_path(url)
    with scratch.folder() as temporary:
        for shard in names:
            path = local / shard if local else temporary / shard
            if not local:
                storage.download(storage.join(url, shard), path)
            scans.append(scan_shard(path, scans[0].image_size if scans else None, channels, bad))
            if len(bad) > max_bad:
                counted = f" ({len(bad)} unreadable images by now, {max_bad} allowed: see --max-bad)"
                raise DataError(bad[-1] + (counted if max_bad else ""))
            if progress:
                progress(scans[-1].entry["count"])
            if not local:
                path.unlink()
    scans = [scan for scan in scans if scan.entry["count"]]
    if not scans:
        raise DataError(f"none of the {len(bad)} images of {url} can be read; {bad[0]}")
    if len({scan.raw for scan in scans}) > 1:
        raise DataError(
            f"some shards of {url} hold raw images, others do not: either all images of a data set are raw or none is"
        )
    labels = np.concatenate([scan.samples["labels"] for scan in scans])
    labelled = bool((labels >= 0).all())
    if not labelled and (labels >= 0).any():
        raise DataError(f"only some samples of {url} have a label (.cls member): either all must or none")
    needed = int(labels.max()) + 1 if labelled else 0
    if classes and len(classes) < needed:
        raise DataError(f"{len(classes)} class names were given for {url}, but there is a label {needed - 1}")
    if labelled and not classes and (empty := sorted({*range(needed)} - {*labels.tolist()})):
        say(f"warning: class {empty[0]} has no images ({len(empty)} of {needed} have none)")
    described = {
        "name": name,
        "image_size": scans[0].image_size,
        "channels": channels,
        "transform": "as in the shards",
        "classes": list(classes) or [str(c) for c in range(needed)],
        "labelled": labelled,
        "extractor": None,
        "prepared": None,
    }
    if bad:
        report(url, list(enumerate(bad)))
    return write_index(url, described | ({"encoding": "raw"} if scans[0].raw else {}), scans)


def _shards_of(url: str, say: Callable[[str], object]) -> list[str]:
    every = [name for name in storage.names(url) if not name.startswith(".")]
    names = [name for name in every if name.lower().endswith(".tar")]
    if INDEX in every:
        raise DataError(f"{url} has an {INDEX} already; remove it to index the shards again")
    if PREPARING in every:
        raise DataError(
            f"the preparation of {url} was not finished, so it holds a part of its shards: repeat "
            "the command that prepares it"
        )
    rest = [name for name in every if name not in (*names, SAMPLES, REPORT)]
    shown = ", ".join(rest[:10]) + (", ..." if len(rest) > 10 else "")
    if not names:
        others = f"; it holds {len(rest)} others: {shown}; unpack what is compressed" if rest else ""
        raise DataError(f"{url} holds no shards; files that end in .tar are indexed{others}")
    if strange := [shard for shard in names if not SHARD_NAME.fullmatch(shard)]:
        raise DataError(f"{url} holds a shard '{strange[0]}': a name without ':' and '\\' is needed, rename it")
    if rest:
        say(
            f"warning: {len(rest)} names in {url} are passed over: {shown}; files that end in .tar are read, so unpack "
            "what is compressed, and index what is in sub-folders apart or move it here"
        )
    if gaps := _gaps(names):
        say(f"warning: the numbers of the shards of {url} have gaps: {', '.join(gaps[:5])} is not there")
    return names


def _gaps(names: Sequence[str]) -> list[str]:
    """Names that are missing between others of the same pattern, at most a thousand."""
    numbers: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for name in names:
        if match := _NUMBER.fullmatch(name):
            numbers[match[1], match[3]][int(match[2])] = len(match[2])
    missing = []
    for (before, after), there in numbers.items():
        first, last = min(there), max(there)
        if last - first < 2 * len(there) + 1000:
            width = there[first]
            missing += [f"{before}{n:0{width}d}{after}" for n in range(first, last) if n not in there]
    return missing[:1000]
