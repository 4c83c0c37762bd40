"""Files by URL, on a local disk or any store that fsspec knows: the only door to fsspec.

File systems are looked up anew at every call: fsspec caches them per process and thread, and one that was made before a
fork must not be used after it.
"""

import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from cmdist.errors import CmdistError


def _resolve(url: str) -> tuple[Any, str]:
    if url.startswith("pipe:"):
        raise CmdistError(
            f"{url}: 'pipe:' URLs run shell commands and are refused; give a path or an fsspec URL such as s3://bucket/folder"
        )
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:
        raise CmdistError(f"{url}: {error}; give a path or a URL that fsspec knows, e.g. s3://bucket/folder") from error


def join(url: str, *parts: str) -> str:
    """`url/part/...` with single slashes between them."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(url: str) -> Path | None:
    """The path of a URL that lies on a local or mounted file system, else None."""
    fs, path = _resolve(url)
    return Path(path) if "file" in _protocols(fs) else None


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def absolute(url: str) -> str:
    """The URL with a local path made absolute."""
    path = local_path(url)
    return str(path) if path is not None else url


def exists(url: str) -> bool:
    """Whether a file or folder is there. Errors of the store (no permission, no answer) are raised, never 'no'."""
    fs, path = _resolve(url)
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def size(url: str) -> int:
    """Bytes of one file. Raises FileNotFoundError."""
    fs, path = _resolve(url)
    return int(fs.info(path)["size"])


def names(url: str) -> list[str]:
    """Sorted names directly below a folder; [] if it is not there. Errors of the store are raised, never 'empty'."""
    fs, path = _resolve(url)
    fs.invalidate_cache(path)
    try:
        entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry).rstrip("/") != path.rstrip("/")})


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a file, all of it by default. Raises FileNotFoundError."""
    fs, path = _resolve(url)
    return bytes(fs.cat_file(path, start=start, end=stop))


def write(url: str, data: bytes | Sequence[bytes | memoryview]) -> None:
    """Write a whole file so that a reader sees all of it or none: temporary name, fsync and rename on a disk, one put elsewhere."""
    fs, path = _resolve(url)
    parts = [data] if isinstance(data, bytes) else data
    if "file" not in _protocols(fs):
        fs.pipe_file(path, b"".join(parts))
        return
    with _replacing(Path(path)) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place, on disk for sure, if nothing fails, and is removed otherwise."""
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
    if "file" not in _protocols(fs):
        fs.put_file(str(source), path)
        return
    with _replacing(Path(path)) as temporary:
        shutil.copyfile(source, temporary)


def download(url: str, target: Path) -> None:
    """Copy a file to `target`, under a temporary name until it is whole. Raises FileNotFoundError."""
    fs, path = _resolve(url)
    with _replacing(target) as temporary:
        fs.get_file(path, str(temporary))


def remove(url: str) -> None:
    """Remove a file or a folder with all below it; nothing happens if it is not there."""
    fs, path = _resolve(url)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return


def forget() -> None:
    """Close the file systems that this process has opened. Called before a fork: a child must neither use them nor close them."""
    for kind in set(fsspec.registry.values()):
        kind.clear_instance_cache()
    gc.collect()
