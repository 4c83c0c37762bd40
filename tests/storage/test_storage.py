import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cmdist.errors import CmdistError
from cmdist.system import storage


@pytest.fixture(params=["local", "file", "memory", "s3"])
def folder(request, tmp_path, s3):
    """A folder that is not there yet, on each kind of store."""
    if request.param == "s3":
        yield f"{s3}/folder"
    elif request.param == "memory":
        yield "memory://storage-test/folder"
        storage.remove("memory://storage-test")
    else:
        yield f"file://{tmp_path}/folder" if request.param == "file" else f"{tmp_path}/folder"


def test_what_is_written_is_read_and_listed_and_removed(folder):
    url = storage.join(folder, "a", "b.bin")
    assert storage.names(folder) == [] and not storage.exists(folder) and not storage.exists(url)
    storage.write(url, b"0123456789")
    storage.write(url, b"9876543210")  # writing again replaces
    storage.write(storage.join(folder, "c.bin"), [b"01", memoryview(b"23")])
    assert storage.read(url) == b"9876543210" and storage.read(url, 2, 5) == b"765" and storage.size(url) == 10
    assert storage.read(storage.join(folder, "c.bin")) == b"0123"
    assert storage.exists(url) and storage.exists(folder)
    assert storage.names(folder) == ["a", "c.bin"] and storage.names(storage.join(folder, "a")) == ["b.bin"]
    storage.remove(storage.join(folder, "a"))
    storage.remove(storage.join(folder, "a"))  # what is gone is no error
    assert storage.names(folder) == ["c.bin"]
    with pytest.raises(FileNotFoundError):
        storage.read(url)
    with pytest.raises(FileNotFoundError):
        storage.size(url)


def test_upload_and_download(folder, tmp_path):
    source, back = tmp_path / "source", tmp_path / "new" / "back"
    source.write_bytes(os.urandom(100_000))
    url = storage.join(folder, "file")
    storage.upload(source, url)
    storage.download(url, back)
    assert back.read_bytes() == source.read_bytes()
    with pytest.raises(FileNotFoundError):
        storage.download(storage.join(folder, "none"), back)
    assert [p.name for p in back.parent.iterdir()] == ["back"] and back.read_bytes() == source.read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    url = str(tmp_path / "file")
    storage.write(url, b"old")

    def full(*args):
        raise OSError("disk full")

    (tmp_path / "source").write_bytes(b"new")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="disk full"):
                storage.write(url, b"new")
            with pytest.raises(OSError, match="disk full"):
                storage.upload(tmp_path / "source", url)
        assert storage.read(url) == b"old" and storage.names(str(tmp_path)) == ["file", "source"]


def test_bytes_are_on_disk_before_they_take_the_name(tmp_path, monkeypatch):
    calls, me = [], threading.get_ident()  # what other tests have left running writes files, too
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        if threading.get_ident() == me:
            calls.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def replaced(before, after):
        if threading.get_ident() == me:
            calls.append(("replace", Path(before).stat().st_size))
        replace(before, after)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    storage.write(str(tmp_path / "file"), b"12345")
    assert calls == [("fsync", 5), ("replace", 5)]


def test_a_reader_never_sees_half_a_file(tmp_path):
    url = str(tmp_path / "file")
    storage.write(url, b"a" * 1_000_000)
    loop = (
        "from cmdist.system import storage\n"
        f"for i in range(200): storage.write({url!r}, bytes([97 + i % 2]) * 1_000_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", loop])
    seen = set()
    while writer.poll() is None:
        data = storage.read(url)
        assert len(data) == 1_000_000 and len(set(data)) == 1
        seen.add(data[0])
    assert writer.returncode == 0 and seen == {97, 98}
    assert storage.names(str(tmp_path)) == ["file"]


def test_files_get_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write(str(tmp_path / "file"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_an_error_of_the_store_is_not_an_empty_folder(tmp_path, monkeypatch):
    import fsspec.implementations.local as local

    def denied(*args, **kwargs):
        raise PermissionError("no")

    monkeypatch.setattr(local.LocalFileSystem, "ls", denied)
    monkeypatch.setattr(local.LocalFileSystem, "info", denied)
    for look in (storage.names, storage.exists, storage.size):
        with pytest.raises(PermissionError):
            look(str(tmp_path))


@pytest.mark.parametrize("name", ["read", "names", "exists", "size", "remove", "local_path", "absolute"])
def test_pipe_is_refused_everywhere(name, tmp_path):
    with pytest.raises(CmdistError, match=r"'pipe:' URLs run shell commands and are refused"):
        getattr(storage, name)(f"pipe:touch {tmp_path}/ran")
    assert storage.names(str(tmp_path)) == []


def test_pipe_is_refused_for_writing(tmp_path):
    (tmp_path / "source").write_bytes(b"")
    for use in (
        lambda url: storage.write(url, b""),
        lambda url: storage.upload(tmp_path / "source", url),
        lambda url: storage.download(url, tmp_path / "x"),
    ):
        with pytest.raises(CmdistError, match="'pipe:' URLs"):
            use("pipe:cat > x")
        with pytest.raises(CmdistError, match="names with '::', which chain file systems, are refused"):
            use("simplecache::file:///x")


def test_an_unknown_protocol_is_a_sentence():
    with pytest.raises(
        CmdistError, match=r"^nosuch://x: .* give a path or a URL that fsspec knows, e\.g\. s3://bucket/folder$"
    ):
        storage.read("nosuch://x")


def test_join_and_local_path(tmp_path, monkeypatch):
    assert storage.join("s3://bucket/a/", "/b/", "c") == "s3://bucket/a/b/c"
    assert storage.join("a") == "a"
    assert storage.local_path("memory://a") is None and storage.absolute("memory://a") == "memory://a"
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/y") == str(tmp_path / "x" / "y") == str(storage.local_path(f"file://{tmp_path}/x/y"))


def test_what_another_process_writes_is_seen(s3, server):
    place = server.folder / "bucket" / s3.rpartition("/")[2]
    assert storage.names(s3) == [] and not storage.exists(f"{s3}/late")
    storage.write(f"{s3}/first", b"1")
    assert storage.names(s3) == ["first"]
    writes = f"storage.write({s3 + '/late'!r}, b'22'); storage.write({s3 + '/first'!r}, b'333')"
    code = f"from cmdist.system import storage; {writes}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (place / "late").read_bytes() == b"22"
    assert storage.exists(f"{s3}/late") and storage.size(f"{s3}/first") == 3 and storage.names(s3) == ["first", "late"]


def test_large_files_go_in_parts_of_which_only_those_under_way_are_copied(s3, monkeypatch):
    parts = [b"0123", memoryview(b""), memoryview(b"456789abcde"), b"f"]
    whole = b"".join(parts)
    sequence = storage._EndToEnd(parts)
    assert len(sequence) == len(whole)
    for start in range(len(whole) + 2):
        for stop in range(start, len(whole) + 3):
            assert sequence[start:stop] == whole[start:stop] and type(sequence[start:stop]) is bytes
    asked, slices = [], storage._EndToEnd.__getitem__
    monkeypatch.setattr(
        storage._EndToEnd, "__getitem__", lambda self, place: (asked.append(place), slices(self, place))[1]
    )
    monkeypatch.setattr(storage, "LARGE", 10)
    monkeypatch.setattr(storage, "PART", 5 * 2**20)
    large = [b"head", memoryview(os.urandom(7 * 2**20)), memoryview(os.urandom(6 * 2**20))]
    storage.write(f"{s3}/large", large)
    assert [place.stop - place.start for place in asked] == [5 * 2**20] * 3
    assert storage.read(f"{s3}/large") == b"".join(large)
