"""What a source of images is, and the parts that several sources share: files, lists of names, images as squares."""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from cmdist.data.decode import MAX_BYTES, MAX_PIXELS, BadImageError, load
from cmdist.errors import DataError

Pixels = NDArray[np.uint8]  # (H, W, C)


@dataclass(frozen=True)
class Source:
    """Images that can be read one by one in any order, so that shuffling needs no memory and shards can be written
    apart.

    `image` raises BadImageError for an image that cannot be had, and is called in several processes after a fork.
    """

    name: str
    image_size: int
    channels: int
    transform: str  # how pixels were made; stored in the index, because variants shift FID
    count: int
    image: Callable[[int], Pixels]  # i -> (H, W, C)
    labels: NDArray[np.int64] | None = None  # (count,), None: unlabelled
    classes: tuple[str, ...] = ()  # names, by label
    passed_over: int = 0  # files of image formats that are not read, by their names
    fingerprint: str = ""  # of what the images are read from: names and sizes, not every byte


class Names:
    """Many names in little memory: one run of bytes and where each ends (3 million paths of 40 bytes: 150 MB, as str
    300 MB or more).
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        parts = list(names)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> bytes:
        return self._bytes[int(self._ends[i - 1]) if i else 0 : int(self._ends[i])]

    def fingerprint(self, *numbers: NDArray[np.int64]) -> str:
        """A hash of the names and of numbers beside them."""
        digest = xxhash.xxh3_128(self._bytes)
        for array in (self._ends, *numbers):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def by_folder(names: list[str], where: object) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Classes and labels of relative paths: the first folder is the class, in sorted order; no folders, no labels.

    Folders that hold all images, each of them in a deeper folder, are passed over: of pics/cat/0.png and pics/dog/1.png
    the classes are cat and dog. A backslash counts as '/', and './' as nothing. Raises DataError if only some lie in
    folders.
    """
    paths = [name.replace("\\", "/").rpartition("/")[0] for name in names]
    folders = {path: [part for part in path.split("/") if part not in ("", ".")] for path in set(paths)}
    depth = 0
    while (
        all(len(parts) > depth + 1 for parts in folders.values())
        and len({parts[depth] for parts in folders.values()}) == 1
    ):
        depth += 1
    firsts = {path: parts[depth] if parts else "" for path, parts in folders.items()}
    classes = tuple(sorted(set(firsts.values()) - {""}))
    if not classes:
        return (), None
    if "" in firsts.values():
        bare = next(name for name, path in zip(names, paths, strict=True) if not firsts[path])
        raise DataError(
            f"{where}/{bare} has no label: either all images of {where} lie in sub-folders, which name their classes, "
            "or none does"
        )
    number = {name: label for label, name in enumerate(classes)}
    return classes, np.array([number[firsts[path]] for path in paths], np.int64)


def refuse_unsafe(name: str, where: object) -> None:
    """Raise DataError for a member whose name leads out of its archive. Nothing is unpacked, but such an archive is not
    to be trusted.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (parts and parts[0].endswith(":")):
        raise DataError(f"{where} holds a member '{name}': names that are absolute or hold '..' are refused")


def length_of(entry: "os.DirEntry[str]") -> int | None:
    """Bytes of a file in a folder, or None for anything else; 0 for a link that leads nowhere, which `read_file` will
    name.

    Raises OSError for what cannot be looked at: a disk that fails for a moment must not change the listing.
    """
    try:
        found = entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def read_file(path: Path) -> bytes:
    """The bytes of one image. Raises BadImageError if it is not there, not to be read, or too long; OSError where the
    disk fails.
    """
    try:
        with open(path, "rb") as file:
            check_length(os.fstat(file.fileno()).st_size, path)
            return file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
            raise
        raise BadImageError(f"{path} cannot be read: {error.strerror}") from error


def check_length(length: int, where: object) -> None:
    """Raise BadImageError for an image of more than MAX_BYTES bytes, before it is read."""
    if length > MAX_BYTES:
        raise BadImageError(f"{where} has {length} bytes, {MAX_BYTES} are allowed")


def transform_of(size: int | None, enlarge: bool = False) -> str:
    """What the index says of how the images were made."""
    if size is None:
        return "none"
    return "ADM centre crop: box halvings, then bicubic" + ("; smaller images are enlarged" if enlarge else "")


def square(data: bytes, where: str, size: int, crop: bool, enlarge: bool) -> Pixels:
    """An encoded image as RGB pixels (size, size, 3): cropped as in ADM, or, without `crop`, as it is.

    Raises BadImageError, naming `where`, if it cannot be decoded, is smaller than `size` without `enlarge`, or would
    have more than MAX_PIXELS enlarged; DataError for another size without `crop`.
    """
    try:
        image = load(data, "RGB")
    except BadImageError as error:
        raise BadImageError(f"{where} {error}") from error
    if not crop:
        if image.size != (size, size):
            raise DataError(
                f"{where} is {image.width}x{image.height}, not {size}x{size}: give --size to crop and resize all images"
            )
    elif min(image.size) < size and not enlarge:
        raise BadImageError(
            f"{where} is {image.width}x{image.height}, smaller than the {size} pixels asked for: "
            "give a smaller --size, "
            "or --enlarge to enlarge such images as ADM does"
        )
    else:
        width, height = (side * size // min(image.size) for side in image.size)
        if min(image.size) < size and width * height > MAX_PIXELS:
            raise BadImageError(
                f"{where} is {image.width}x{image.height}, which enlarged to {size} pixels would be {width}x{height}: "
                f"{MAX_PIXELS} in all are allowed"
            )
        image = centre_crop(image, size)
    return np.asarray(image)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image at `size` pixels: halved by boxes while both sides allow it, then bicubic (ADM's
    variant).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
