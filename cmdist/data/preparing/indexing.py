"""WebDataset shards that are there already, made a data set: read once, checked, and indexed where they are."""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from braceexpand import braceexpand

from cmdist.data.index import INDEX, PREPARING, SAMPLES, SHARD_NAME
from cmdist.data.preparing.preparation import REPORT, report
from cmdist.data.preparing.scan import Labels, Scan, scan_shard
from cmdist.data.preparing.shards import write_index
from cmdist.data.preparing.workers import Progress
from cmdist.errors import ConfigError, DataError
from cmdist.system import scratch, storage

MOST_SHARDS = 1_000_000
_NUMBER = re.compile(r"(.*?)(\d+)([^\d]*)", re.DOTALL)


def index_shards(
    url: str,
    *,
    name: str = "shards",
    channels: int = 3,
    classes: Sequence[str] = (),
    label_key: str | None = None,
    max_bad: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Make a data set of WebDataset shards that are there already: all .tar files of the folder `url`, or those of a
    pattern as `folder/{00000..00003}.tar`, or one. Read them, write the index beside them.

    Labels are the numbers in the .cls members, if there are any, or what the .json members hold under `label_key`:
    numbers, or names of `classes`. Shards without samples are passed over and told to `say`, as is what else the folder
    holds. Every image is decoded once: at most `max_bad` that cannot be, or of which a part is missing, are left out
    and named in a report. Raises DataError for shards that are truncated or damaged, members that are pickles, samples
    without image or label, images of several sizes, raw ones beside others, more bad images, and a folder that has an
    index or is being prepared; ConfigError for a pattern that is none.
    """
    url, chosen = chosen_of(url)
    names = _shards_of(url, chosen, say)
    reader = Labels(label_key, tuple(classes))
    scans: list[Scan] = []
    bad: list[str] = []
    local = storage.local_path(url)
    with scratch.folder() as temporary:
        for shard in names:
            path = local / shard if local else temporary / shard
            size = next((scan.image_size for scan in scans if scan.entry["count"]), None)
            if not local:
                storage.download(storage.join(url, shard), path)
            scans.append(scan_shard(path, size, channels, bad, reader))
            if len(bad) > max_bad:
                counted = f" ({len(bad)} unreadable images by now, {max_bad} allowed: see --max-bad)"
                raise DataError(bad[-1] + (counted if max_bad else ""))
            if progress:
                progress(scans[-1].entry["count"])
            if not local:
                path.unlink()
    if empty := [shard for shard, scan in zip(names, scans, strict=True) if not scan.entry["count"]]:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        say(f"warning: {len(empty)} of {len(names)} shards have no sample and are left out: {shown}")
    scans = [scan for scan in scans if scan.entry["count"]]
    if not scans and bad:
        raise DataError(f"none of the {len(bad)} images of {url} can be read; {bad[0]}")
    if not scans:
        raise DataError(f"the shards of {url} have no sample: {names[0]} holds nothing")
    if reader.other and not label_key:
        say(
            f"warning: {reader.other} samples have a .json member; a label in it is read with --label-key KEY, and the "
            f"first one's keys are {', '.join(reader.keys)}"
        )
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


def chosen_of(url: str) -> tuple[str, list[str] | None]:
    """The folder, and the names of the shards if the url gives them: one shard, or a pattern of several."""
    folder, _, last = url.rpartition("/")
    if "{" in folder:
        raise ConfigError(f"{url}: only the names of the shards may be a pattern, as in folder/{{00000..00003}}.tar")
    if "{" in last:
        try:
            wide = any(abs(int(a) - int(b)) > MOST_SHARDS for a, b in re.findall(r"(\d{1,20})\.\.(\d{1,20})", last))
            names = [] if wide else list(itertools.islice(braceexpand(last), MOST_SHARDS + 1))
        except ValueError as error:
            raise ConfigError(f"{url}: a brace is not closed; {{00000..00003}}.tar is a pattern") from error
        if wide or len(names) > MOST_SHARDS:
            raise ConfigError(f"{url}: a pattern of at most {MOST_SHARDS:,} shards is allowed")
        return folder or ".", names
    if last.lower().endswith(".tar") and not storage.names(url):
        return folder or ".", [last]
    return url, None


def _shards_of(url: str, chosen: Sequence[str] | None, say: Callable[[str], object]) -> list[str]:
    every = [name for name in storage.names(url) if not name.startswith(".")]
    names = [name for name in every if name.lower().endswith(".tar")]
    if INDEX in every:
        raise DataError(f"{url} has an {INDEX} already; remove it to index the shards again")
    if PREPARING in every:
        raise DataError(
            f"the preparation of {url} was not finished, so it holds a part of its shards: repeat "
            "the command that prepares it"
        )
    if chosen is not None:
        if missing := [name for name in chosen if name not in every]:
            raise DataError(f"{url} has no shard {missing[0]} ({len(missing)} of {len(chosen)} are missing)")
        if unread := len(set(names) - set(chosen)):
            say(f"warning: {unread} other shards of {url} are left out")
        names = [name for name in chosen if name in names]
        every = names
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
