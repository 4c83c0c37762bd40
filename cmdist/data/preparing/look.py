"""A dry look at one's own images: everything that is odd with them at once, and the command that would work."""

import re
import shlex
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from cmdist.data.decode import MAX_PIXELS, BadImageError, opened, readable
from cmdist.data.preparing.sources.files import labelled
from cmdist.data.preparing.sources.labels import Labelled, counts
from cmdist.data.preparing.sources.listing import Listing, in_folder
from cmdist.data.preparing.sources.pictures import LAID, TURNED, WHITE, Reading, html, load
from cmdist.data.preparing.sources.zips import in_zip
from cmdist.errors import DataError
from cmdist.system.texts import counted

MOST_PIXELS = 2**31  # of one image; it is held in memory as RGB
_SIDE = 64  # pixels suggested where images have several sizes and none was given
_EXAMPLES = 3
_TOLD = {
    TURNED: "lie down or on their heads, and are turned upright as their EXIF data say",
    LAID: "are transparent in parts, and are laid on the background",
}


@dataclass
class _Seen:
    """How often each kind of oddity was seen, with some names, and what a command must allow for."""

    kinds: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) of those that can be read
    bad: int = 0
    pixels: int = 0  # of the largest

    def add(self, kind: str, name: str) -> None:
        self.kinds[kind] += 1
        if len(self.names.setdefault(kind, [])) < _EXAMPLES:
            self.names[kind].append(name)

    def lines(self) -> list[str]:
        return [_line(n, f"{kind}, e.g. {', '.join(self.names[kind])}") for kind, n in self.kinds.most_common()]


def look(
    source: str,
    out: str,
    *,
    path: Path,
    size: int | None,
    enlarge: bool,
    reading: Reading,
    classes: Path | None,
    unlabelled: bool,
) -> str:
    """Decode every image of a folder or zip file, and say what is odd, with numbers, and which command would prepare
    them. Nothing is written. Raises DataError only where nothing can be listed.
    """
    listing = in_folder(path) if source == "folder" else in_zip(path)
    told, failure = _labels(listing, classes, unlabelled)
    lines = [f"{path}: {counted(len(listing.names), 'image')}", *listing.notes, *told.notes]
    lines += [f"no labels can be had: {failure}"] if failure else []
    lines += [f"classes: {counts(told.classes, told.labels)}"] if told.labels is not None else []
    lines += [_line(listing.others, "pictures of other formats are passed over")] if listing.others else []
    seen = _look_at_all(listing, reading)
    several = len(seen.shapes) > 1 or any(width != height for width, height in seen.shapes)
    if size is None and several:
        lines.append(_line(len(seen.shapes), f"sizes there are, so --size is needed, e.g. --size {_SIDE}"))
        size = _SIDE
    if small := sum(n for shape, n in seen.shapes.items() if size and min(shape) < size):
        lines.append(_line(small, f"are smaller than {size} pixels, so --enlarge or a smaller --size is needed"))
    allowed = max(seen.pixels, reading.max_pixels)
    if too_long := sum(n for shape, n in seen.shapes.items() if size and _enlarged(shape, size) > allowed):
        lines.append(_line(too_long, f"would have more than {allowed} pixels when enlarged, and count as unreadable"))
    lines += seen.lines()
    bad = seen.bad + too_long
    if seen.shapes.total() <= too_long:
        return "\n".join([*lines, "none can be read, so no command would work"])
    command = ["python", "pipelines/prepare_data.py", source, str(path), "--out", out]
    command += ["--size", str(size)] if size else []
    command += ["--enlarge"] if size and (small or enlarge) else []
    command += [] if reading.upright else ["--ignore-rotation"]
    command += [] if reading.background in (None, WHITE) else ["--background", html(reading.background)]
    command += ["--max-pixels", str(allowed)] if allowed != MAX_PIXELS else []
    command += ["--unlabelled"] if failure or unlabelled else ["--classes", str(classes)] if classes else []
    command += ["--max-bad", str(bad)] if bad else []
    return "\n".join([*lines, "this would work:", shlex.join(command)])


def _line(number: int, text: str) -> str:
    return f"{number:8d}  {text}"


def _labels(listing: Listing, classes: Path | None, unlabelled: bool) -> tuple[Labelled, str]:
    """The labels, or why they cannot be had."""
    try:
        return (Labelled() if unlabelled else labelled(listing, classes)), ""
    except DataError as error:
        return Labelled(), str(error)


def _look_at_all(listing: Listing, reading: Reading) -> _Seen:
    seen = _Seen()
    for i, name in enumerate(listing.names):
        try:
            data = listing.read(i, name)
            with readable():
                image = opened(data, MOST_PIXELS)
                pixels = image.width * image.height
            picture, treated = load(data, replace(reading, max_pixels=MOST_PIXELS))
        except DataError as error:
            if not isinstance(error, BadImageError):
                raise
            seen.bad += 1
            seen.add(_kind(str(error), f"{listing.root}/{name}"), name)
            continue
        seen.shapes[picture.size] += 1
        seen.pixels = max(seen.pixels, pixels)
        if pixels > reading.max_pixels:
            seen.add(f"have more than {reading.max_pixels} pixels, so --max-pixels is needed", name)
        for each in treated:
            seen.add(_TOLD[each], name)
        if getattr(image, "n_frames", 1) > 1:
            seen.add("are animations or several pictures, of which the first is taken", name)
        if image.mode not in ("RGB", "RGBA"):
            seen.add(f"are of mode {image.mode}, and become RGB", name)
    return seen


def _kind(sentence: str, where: str) -> str:
    """Why an image cannot be read, without its name and numbers."""
    reason = re.search(r"is not a readable image \((.*)\)$", sentence, re.DOTALL)
    text = reason[1] if reason else sentence.replace(where, "").strip()
    return "cannot be read: " + re.sub(r"\d+", "N", text)


def _enlarged(shape: tuple[int, int], size: int) -> int:
    """Pixels of an image of this shape enlarged to `size`; 0 for one that need not be."""
    width, height = (side * size // min(shape) for side in shape)
    return width * height if min(shape) < size else 0
