"""Files by URL, on a local disk or any store that fsspec knows: the only door to fsspec.

A file appears whole or not at all, at its URL and to every reader. What a store may well do a moment later (throttling,
time-outs, resets, 5xx) is tried again here, with growing pauses; what it will not (no permission, not there) is raised
at once. File systems are looked up anew at every call: fsspec caches them per process and thread, and one that was made
before a fork must not be used after it.
"""

import contextlib
import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from cmdist.errors import CmdistError
from cmdist.system import files, s3, urls
from cmdist.system.store_errors import answer, sentence, transient

T = TypeVar("T")

ATTEMPTS = 5
PATIENCE = 60.0  # seconds after which no further attempt is begun
PAUSE = 0.25  # seconds after the first failure; doubles, and a random half is taken off
READ_TIMEOUT = 30.0  # seconds without a byte
LARGE = 64 * 2**20  # bytes from which a file goes to S3 in parts
PART = 16 * 2**20  # bytes, at least; S3 takes up to 10,000 parts

_JITTER = random.SystemRandom()  # not of the run: a pause must not move any seeded generator


def _resolve(url: str) -> tuple[Any, str]:
    urls.refuse_secrets(url)
    if "::" in url:
        raise CmdistError(
            f"{url}: names with '::', which chain file systems, are refused; give a path or one fsspec URL"
        )
    options: dict[str, Any] = {}
    if "://" in url and not url.startswith(("file:", "local:")):
        options["use_listings_cache"] = False  # what another process has written counts
    if url.startswith(("s3:", "s3a:")):
        options["config_kwargs"] = {
            "connect_timeout": 10,
            "read_timeout": READ_TIMEOUT,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 32,
            # S3's own checksums of whole objects break byte ranges on other servers; ours are of every block
            "response_checksum_validation": "when_required",
        }
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise CmdistError(f"{url}: {error}; give a path or a URL that fsspec knows, e.g. s3://bucket/folder") from error
    if hasattr(fs, "retries"):
        fs.retries = 1  # as botocore's above: `_try` alone repeats, else one fault would be met many times over
    return fs, path


def _try(url: str, action: Callable[[], T]) -> T:
    """`action()`, again while that may help. Raises FileNotFoundError, StoreDenied, StoreMissing, StoreError; a disk's
    error as it is.
    """
    remote = "://" in url and not url.startswith(("file:", "local:"))
    begin = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not remote and (attempt == ATTEMPTS or not transient(error, remote)):
                raise
            waited = time.monotonic() - begin
            if not transient(error, remote) or attempt == ATTEMPTS or waited > PATIENCE:
                raise sentence(url, error, attempt, waited) from error
            time.sleep(PAUSE * 2 ** (attempt - 1) * _JITTER.uniform(0.5, 1.0))
    raise AssertionError


def join(url: str, *parts: str) -> str:
    """`url/part/...` with single slashes between them."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(url: str) -> Path | None:
    """The path of a URL that lies on a local or mounted file system, else None."""
    fs, path = _resolve(url)
    return Path(path) if _is_local(fs) else None


def _refuse_irregular(url: str, fs: Any, path: str) -> None:
    if _is_local(fs):
        try:
            files.refuse_irregular(Path(path))
        except ValueError as error:
            raise CmdistError(f"{url} {error}") from error


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def absolute(url: str) -> str:
    """The URL with a local path made absolute."""
    path = local_path(url)
    return str(path) if path is not None else url


def exists(url: str) -> bool:
    """Whether a file or folder is there.
    Errors of the store (no permission, no bucket, no answer) are raised, never 'no'.
    """
    try:
        _info(url)
    except FileNotFoundError:
        return False
    return True


def size(url: str) -> int:
    """Bytes of one file. Raises FileNotFoundError."""
    return int(_info(url)["size"])


def _info(url: str) -> dict[str, Any]:
    fs, path = _resolve(url)
    return _try(url, lambda: fs.info(path))  # type: ignore[no-any-return]


def names(url: str) -> list[str]:
    """Sorted names directly below a folder; [] if it is not there. Errors of the store are raised, never 'empty'."""
    fs, path = _resolve(url)

    def look() -> list[str]:
        fs.invalidate_cache(path)
        try:
            return fs.ls(path, detail=False)  # type: ignore[no-any-return]
        except FileNotFoundError as error:
            if answer(error)[0] == "NoSuchBucket":
                raise
            return []

    entries = [str(entry).rstrip("/") for entry in _try(url, look)]
    return sorted({entry.rsplit("/", 1)[-1] for entry in entries if entry != path.rstrip("/")})


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a file, all of it by default. Raises FileNotFoundError."""
    fs, path = _resolve(url)
    _refuse_irregular(url, fs, path)
    return bytes(_try(url, lambda: fs.cat_file(path, start=start, end=stop)))


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several byte ranges [start, stop) of a file, at the same time where the store can; short or empty beyond its end.

    Raises FileNotFoundError.
    """
    fs, path = _resolve(url)
    _refuse_irregular(url, fs, path)
    starts, stops = [low for low, _ in ranges], [high for _, high in ranges]

    def get() -> list[bytes]:
        chunks = fs.cat_ranges([path] * len(ranges), starts, stops, on_error="return")
        for i, part in enumerate(chunks):
            if isinstance(part, BaseException):
                if answer(part)[1] != 416:
                    raise part
                chunks[i] = b""
        return [bytes(part) for part in chunks]

    return _try(url, get)


def write(url: str, data: bytes | Sequence[bytes | memoryview]) -> None:
    """Write a whole file so that a reader sees all of it or none:
    temporary name, fsync and rename on a disk, one put elsewhere.
    """
    fs, path = _resolve(url)
    parts = [data] if isinstance(data, bytes) else data
    if _is_local(fs):
        _try(url, lambda: _write_local(Path(path), parts))
        return
    if sum(map(len, parts)) >= LARGE and "s3" in fs.protocol:
        large = _EndToEnd(parts)
        s3.put_parts(fs, path, large, max(PART, len(large) // 5000), lambda action: _try(url, action))
    else:
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        _try(url, lambda: fs.pipe_file(path, whole))


class _EndToEnd:
    """Parts as one sequence of bytes, of which nothing is copied but the slices that are asked for."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = [memoryview(part) for part in parts]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, place: slice) -> bytes:
        start, stop, _ = place.indices(len(self))
        result = []
        for part in self._parts:
            result.append(part[max(start, 0) : max(stop, 0)])
            start, stop = start - len(part), stop - len(part)
        return b"".join(result)


def _write_local(target: Path, parts: Sequence[bytes | memoryview]) -> None:
    with _replacing(target) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part)


def create(url: str, data: bytes) -> None:
    """Write a new small file; nothing is changed if the name is taken, so whoever must know reads what is there.

    Exact on a disk (link) and on stores with conditional puts (S3, Ceph, Google). One that ignores conditions may let a
    second writer through that came at the same moment.
    """
    fs, path = _resolve(url)

    def put() -> None:
        try:
            fs.pipe_file(path, data, mode="create")
        except Exception as error:
            if not isinstance(error, FileExistsError) and answer(error)[1] != 412:
                raise

    if not exists(url):
        _try(url, (lambda: _create_local(Path(path), data)) if _is_local(fs) else put)


def _create_local(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        with contextlib.suppress(FileExistsError):
            os.link(name, target)  # unlike a rename, it fails if the name is taken, on NFS too
    finally:
        os.unlink(name)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place, on disk for sure, if nothing fails,
    and is removed otherwise.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        yield Path(name)
        os.fsync(handle)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def upload(source: Path, url: str) -> None:
    """Copy a local file to `url`; at no time is a part of it visible there under its name."""
    fs, path = _resolve(url)
    if not _is_local(fs):
        _try(url, lambda: fs.put_file(str(source), path))
        return
    with _replacing(Path(path)) as temporary:
        shutil.copyfile(source, temporary)


def download(url: str, target: Path) -> None:
    """Copy a file to `target`, under a temporary name until it is whole. Raises FileNotFoundError."""
    fs, path = _resolve(url)
    _refuse_irregular(url, fs, path)

    def get() -> None:
        with _replacing(target) as temporary:
            fs.get_file(path, str(temporary))

    _try(url, get)


def remove(url: str) -> None:
    """Remove a file or a folder with all below it; nothing happens if it is not there. Raises StoreDenied."""
    fs, path = _resolve(url)

    def erase() -> None:
        with contextlib.suppress(FileNotFoundError):
            if "s3" in fs.protocol:
                s3.erase(fs, path)  # s3fs says nothing of what the store refuses
            else:
                fs.rm(path, recursive=True)

    _try(url, erase)


def abort_uploads(url: str, match: Callable[[str], bool]) -> int:
    """Abort open uploads in parts of files below `url` whose URLs `match` takes; how many. Only S3 has such."""
    fs, path = _resolve(url)
    if "s3" not in fs.protocol:
        return 0
    scheme = url.partition("://")[0]
    return _try(url, lambda: s3.abort_uploads(fs, path, lambda place: match(f"{scheme}://{place}")))


def forget() -> None:
    """Close the file systems that this process has opened.
    Called before a fork: a child must neither use them nor close them.
    """
    for kind in set(fsspec.registry.values()):
        kind.clear_instance_cache()
    gc.collect()
