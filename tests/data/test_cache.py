import contextlib
import fcntl
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cmdist.data import cache, images
from cmdist.data.cache import Cache, Remote, checksum_of
from cmdist.data.images import open_dataset
from cmdist.data.order import Order
from cmdist.data.preparing.indexing import index_shards
from cmdist.data.preparing.shards import write_dataset
from cmdist.data.reader import micro_batches
from cmdist.errors import CmdistError, DataError
from cmdist.system import storage
from conftest_data import numbered


class Store(http.server.SimpleHTTPRequestHandler):
    """A store on a port of this machine, slow enough for two fetches of one shard to meet."""

    gets: list[str]
    spoil: set[int]  # numbers of the GETs of shards that are answered with a flipped bit

    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if not name.endswith(".tar"):
            return super().do_GET()
        self.gets.append(name)
        path = Path(self.translate_path(self.path))
        if not path.exists():
            return self.send_error(404)
        data = bytearray(path.read_bytes())
        if len(self.gets) in self.spoil:
            data[1000] ^= 1
        time.sleep(0.2)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


@pytest.fixture
def store(dataset):
    """(URL of the data set on a server, the names of the shards that were fetched, which fetches to spoil)."""
    gets, spoil = [], set()
    handler = type("Handler", (Store,), {"gets": gets, "spoil": spoil})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(Path(dataset.url).parent))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/set", gets, spoil
    server.shutdown()
    server.server_close()
    thread.join()


READ_ALL = """
import sys
from pathlib import Path
from cmdist.data.cache import Cache
from cmdist.data.images import open_dataset
print(open_dataset(sys.argv[1], Cache(Path(sys.argv[2]))).images(range(50)).sum().item())
"""


def test_no_shard_is_fetched_twice_by_two_processes_at_once(store, dataset, tmp_path):
    url, gets, _ = store
    command = [sys.executable, "-c", READ_ALL, url, str(tmp_path / "cache")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [reader.communicate(timeout=60)[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert answers == [f"{dataset.images(range(50)).sum().item()}\n"] * 2
    assert sorted(gets) == [f"shard-{i:06d}.tar" for i in range(5)]
    assert not [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


def test_reading_processes_share_a_store_that_their_parent_used(store, dataset, tmp_path):
    url, gets, _ = store
    remote = open_dataset(url, Cache(tmp_path / "cache"), memory=0)
    remote.image(0)  # fsspec's thread runs in the parent now, and not in what is forked from it
    order = Order(dataset.counts, seed=0)
    for workers in (2, 0):
        with contextlib.closing(micro_batches(remote, order, 10, iter(range(5)), seed=0, workers=workers)) as batches:
            got = list(batches)
        want = list(micro_batches(dataset, order, 10, iter(range(5)), seed=0))
        assert (
            all(g.images.equal(w.images) and g.ids.equal(w.ids) for g, w in zip(got, want, strict=True))
            and len(got) == 5
        )
    assert sorted(gets) == [f"shard-{i:06d}.tar" for i in range(5)]


def test_a_shard_that_arrives_damaged_is_fetched_again_then_refused(store, tmp_path, monkeypatch):
    url, gets, spoil = store
    monkeypatch.setattr(cache, "PAUSE", 0.01)
    spoil.add(1)
    remote = open_dataset(url, Cache(tmp_path / "cache"))
    remote.image(0)
    assert gets == ["shard-000000.tar"] * 2
    spoil.update(range(3, 100))
    with pytest.raises(
        DataError,
        match=r"^shard http.*1\.tar could not be fetched in 4 attempts: what arrives is not what the index says",
    ):
        remote.image(10)
    assert gets[2:] == ["shard-000001.tar"] * 4
    files = [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]
    assert len(files) == 1  # nothing of the damaged one


def test_a_remote_shard_that_is_missing_is_one_sentence(store, dataset, tmp_path):
    url, _, _ = store
    remote = open_dataset(url, Cache(tmp_path / "cache"))
    (Path(dataset.url) / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match=rf"^shard {re.escape(url)}/shard-000002\.tar is missing$"):
        remote.image(20)


def test_equal_shard_names_of_two_data_sets_do_not_meet_in_the_cache(tmp_path):
    urls = ["memory://cache-test/a", "memory://cache-test/b"]
    try:
        for seed, url in enumerate(urls):
            write_dataset(url, numbered(12), per_shard=5, seed=seed)
        a, b = (open_dataset(url, Cache(tmp_path / "cache")) for url in urls)
        assert not a.images(range(12)).equal(b.images(range(12)))
        assert sorted(a.labels(range(12)).tolist()) == sorted(b.labels(range(12)).tolist())
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 6
    finally:
        storage.remove("memory://cache-test")


def test_the_next_block_waits_for_a_shard_that_another_process_fetches(store, tmp_path):
    url, gets, _ = store
    kept = Cache(tmp_path / "cache")
    data = open_dataset(url, kept, memory=0)
    first = Remote(
        f"{url}/{data.index['shards'][0]['name']}", data.index["shards"][0]["size"], data.index["shards"][0]["checksum"]
    )
    kept.folder.mkdir()
    with (kept.folder / f"{first.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process has it that fetches
        data.expect([[0, 1], [2]])
        deadline = time.monotonic() + 20
        while not any("shard-000001" in name for name in gets):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)
        assert not any(name.endswith(("shard-000000.tar", "shard-000002.tar")) for name in gets)
    while not any("shard-000002" in name for name in gets):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    data.close()


def test_what_a_killed_fetch_left_is_cleared_away(dataset, tmp_path):
    storage.write("memory://killed/a.tar", b"x" * 100)
    try:
        source = tmp_path / "a.tar"
        source.write_bytes(b"x" * 100)
        checksum = cache.checksum_of(source)
        shard, kept = Remote("memory://killed/a.tar", 100, checksum), Cache(tmp_path / "cache")
        kept.fetch(shard)
        (target,) = (tmp_path / "cache").glob("*.tar")
        target.unlink()
        (target.parent / f".{target.stem}.part").write_bytes(b"x")
        (target.parent / f"..{target.stem}.part.abc").write_bytes(b"x")  # as storage.download names it
        os.close(kept.open(shard))
        assert target.read_bytes() == b"x" * 100
        assert sorted(p.suffix for p in target.parent.iterdir()) == [".lock", ".tar"]
    finally:
        storage.remove("memory://killed")


def test_remote_shards_can_be_indexed(tmp_path):
    url = "memory://index-test"
    try:
        write_dataset(url, numbered(12, channels=3), per_shard=5)
        want = open_dataset(url, Cache(tmp_path / "cache"))
        for name in ("index.json", "index.npz"):
            storage.remove(f"{url}/{name}")
        index_shards(url)
        got = open_dataset(url, Cache(tmp_path / "cache"))
        assert got.images(range(12)).equal(want.images(range(12))) and got.labels(range(12)).equal(
            want.labels(range(12))
        )
    finally:
        storage.remove(url)


def test_the_default_cache_is_private():
    assert str(os.getuid()) in cache.default_folder().name


def test_the_next_shard_is_fetched_while_this_one_is_decoded(store, tmp_path, monkeypatch):
    """The last image of each shard waits for the request of the next shard: without fetching ahead it would wait in
    vain.
    """
    url, gets, _ = store
    decoded = []
    plain = images.decode

    def waiting(*arguments):
        decoded.append(None)
        shard, last = len(decoded) // 10, len(decoded) % 10 == 0
        deadline = time.monotonic() + 20
        while last and shard < 5 and len(gets) <= shard:
            assert time.monotonic() < deadline, (
                f"shard {shard} of the order was not asked for while the one before was decoded"
            )
            time.sleep(0.01)
        return plain(*arguments)

    monkeypatch.setattr(images, "decode", waiting)
    remote = open_dataset(url, Cache(tmp_path / "cache"), memory=0)
    order = Order(remote.counts, seed=0, block_shards=1)
    with contextlib.closing(micro_batches(remote, order, 5, iter(range(10)), seed=0)) as batches:
        assert len(list(batches)) == 10
    assert sorted(gets) == [f"shard-{shard:06d}.tar" for shard in range(5)]
    assert len(gets) == len(set(gets))


def test_a_limit_is_kept_and_the_least_recently_used_go_first(store, dataset, tmp_path):
    url, gets, _ = store
    sizes = {entry["name"]: entry["size"] for entry in dataset.index["shards"]}
    limit = 2 * max(sizes.values())
    shards = [Remote(f"{url}/{e['name']}", e["size"], e["checksum"]) for e in dataset.index["shards"]]
    sizes_by_name = {shard.name: shard.size for shard in shards}
    remote = open_dataset(url, Cache(tmp_path / "cache", limit), memory=0)
    order = Order(remote.counts, seed=0, block_shards=1)
    most = 0
    with contextlib.closing(micro_batches(remote, order, 5, iter(range(20)), seed=0)) as batches:
        for got, want in zip(batches, micro_batches(dataset, order, 5, iter(range(20)), seed=0), strict=True):
            assert got.images.equal(want.images)
            most = max(most, sum(sizes_by_name[path.stem] for path in (tmp_path / "cache").glob("*.tar")))
    assert 0 < most <= limit
    assert set(gets) == set(sizes)

    again = Cache(tmp_path / "least", limit)
    for i in (0, 1, 0, 2):
        os.close(again.open(shards[i]))
        time.sleep(0.05)  # a file system's clock is coarse
    assert {path.stem for path in (tmp_path / "least").glob("*.tar")} == {shards[0].name, shards[2].name}


def test_what_is_being_read_is_not_removed(store, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE", 0.0)
    url, _, _ = store
    shards = [Remote(f"{url}/{e['name']}", e["size"], e["checksum"]) for e in dataset.index["shards"]]
    kept = Cache(tmp_path / "cache", 2 * max(s.size for s in shards))
    reading = [kept.open(shard) for shard in shards[:2]]
    with pytest.raises(DataError, match=r"^data\.cache_gib is too small: .* may hold [\d,]+ bytes, [\d,]+ are in use"):
        kept.open(shards[2])
    with pytest.raises(cache.NoRoomError):
        kept.fetch(shards[2])
    assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == {s.name for s in shards[:2]}
    os.close(reading[0])
    os.close(kept.open(shards[2]))
    assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == {s.name for s in shards[1:3]}
    os.close(reading[1])
    with pytest.raises(DataError, match="data.cache_gib is too small"):
        Cache(tmp_path / "tiny", 100).open(shards[0])


def test_room_that_a_killed_process_reserved_is_free_again(store, dataset, tmp_path):
    url, _, _ = store
    entry = dataset.index["shards"][0]
    shard = Remote(f"{url}/{entry['name']}", entry["size"], entry["checksum"])
    kept = Cache(tmp_path / "cache", entry["size"])
    kept.folder.mkdir()
    left = kept.folder / ".0123.reserved"
    with open(left, "wb") as file:
        file.truncate(10 * entry["size"])
    os.close(kept.open(shard))
    assert not left.exists()


READ_BY_SHARDS = """
import sys
from pathlib import Path
from cmdist.data.cache import Cache
from cmdist.data.images import open_dataset
data, total = open_dataset(sys.argv[1], Cache(Path(sys.argv[2]), int(sys.argv[3])), memory=0), 0
for i in range(50):
    data.expect([[i // 10]])
    total += int(data.image(i).sum())
print(total)
"""


def test_two_processes_share_a_cache_with_room_for_three_shards(store, dataset, tmp_path):
    limit = 3 * max(entry["size"] for entry in dataset.index["shards"])
    command = [sys.executable, "-c", READ_BY_SHARDS, store[0], str(tmp_path / "cache"), str(limit)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [reader.communicate(timeout=60)[0] for reader in readers]
    assert answers == [f"{dataset.images(range(50)).sum().item()}\n"] * 2
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= limit


@pytest.mark.parametrize("workers", [0, 4])
def test_a_cache_of_two_blocks_and_a_shard_is_enough_and_fetches_nothing_twice(dataset, tmp_path, workers):
    url = "memory://two-blocks"  # of the file system's own process: each reading process inherits all of it
    write_dataset(url, numbered(480), per_shard=20)  # 24 shards, 6 blocks
    fetched = tmp_path / "fetched"
    fetched.mkdir()

    def download(source, target, plain=storage.download):
        (fetched / f"{source.rpartition('/')[2]}.{os.getpid()}.{time.monotonic_ns()}").touch()
        plain(source, target)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "download", download)
            sizes = [entry["size"] for entry in open_dataset(url).index["shards"]]
            remote = open_dataset(url, Cache(tmp_path / "cache", 9 * max(sizes)), memory=0)
            order = Order(remote.counts, seed=0, block_shards=4)
            # five blocks in micro-batches that straddle them; what is fetched ahead does not reach the next epoch
            with contextlib.closing(
                micro_batches(remote, order, 6, iter(range(66)), seed=0, workers=workers)
            ) as batches:
                assert len(list(batches)) == 66
        names = [path.name.partition(".tar")[0] for path in fetched.iterdir()]
        assert len(names) == len(set(names)) >= 20
    finally:
        storage.remove(url)


def test_what_a_killed_fetch_left_is_removed_when_room_is_needed_for_another(store, dataset, tmp_path):
    url, gets, _ = store
    limit = max(entry["size"] for entry in dataset.index["shards"])
    command = [sys.executable, "-c", READ_BY_SHARDS, url, str(tmp_path / "cache"), str(limit)]
    with subprocess.Popen(command) as reading:
        while not gets:
            time.sleep(0.005)
        reading.kill()  # while the store thinks
    other = next(e for e in dataset.index["shards"] if e["name"] not in gets)
    kept = Cache(tmp_path / "cache", limit)
    os.close(kept.open(Remote(f"{url}/{other['name']}", other["size"], other["checksum"])))
    assert {path.suffix for path in kept.folder.iterdir()} == {".lock", ".tar"}
    assert len(list(kept.folder.glob("*.tar"))) == 1


def test_all_images_of_a_set_can_be_read_piece_by_piece_through_a_small_cache(store, dataset, tmp_path):
    remote = open_dataset(
        store[0], Cache(tmp_path / "cache", 2 * max(entry["size"] for entry in dataset.index["shards"])), memory=0
    )
    for first in range(0, 50, 5):
        assert remote.images(range(first, first + 5)).equal(dataset.images(range(first, first + 5)))
    remote.close()


# a folder that others may have prepared (B.2)


def cache_of(folder, tmp_path):
    (tmp_path / "far").mkdir(exist_ok=True)
    (tmp_path / "far" / "a.tar").write_bytes(b"shard" * 100)
    shard = Remote(f"file://{tmp_path}/far/a.tar", 500, checksum_of(tmp_path / "far" / "a.tar"))
    return Cache(folder), shard


@pytest.mark.parametrize("name", ["{}.lock", ".{}.reserved", "{}.tar", ".{}.part"])
def test_b2_a_planted_link_is_not_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 100)
    cache, shard = cache_of(tmp_path / "cache", tmp_path)
    cache.folder.mkdir(mode=0o700)
    (cache.folder / name.format(shard.name)).symlink_to(victim)
    with contextlib.suppress(OSError):
        os.close(Cache(cache.folder, 10_000).open(shard))
    assert victim.read_bytes() == b"precious" * 100


def test_b2_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    cache, shard = cache_of(tmp_path / "cache", tmp_path)
    cache.folder.mkdir(mode=0o700)
    os.chown(cache.folder, 12345, -1)
    with pytest.raises(DataError, match=r"cache belongs to user 12345; give a folder of your own \(data\.cache\)$"):
        cache.open(shard)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    with pytest.raises(DataError, match="belongs to user 12345"):
        Cache(tmp_path / "link").open(shard)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_b2_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    cache, shard = cache_of(tmp_path / "cache", tmp_path)
    cache.folder.mkdir()
    cache.folder.chmod(mode)
    with pytest.raises(DataError, match=r"may be written to by others \(chmod go-w\)"):
        cache.fetch(shard) and cache.open(shard)


def test_b2_our_own_folder_is_made_for_us_alone_and_a_link_of_ours_is_followed(tmp_path):
    cache, shard = cache_of(tmp_path / "cache", tmp_path)
    os.close(cache.open(shard))
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    os.close(Cache(tmp_path / "link").open(shard))


def test_c_who_waits_for_another_process_says_so_and_gives_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cmdist.data.cache.LONGEST", 0.5)
    monkeypatch.setattr("cmdist.system.locks.SAID_AFTER", 0.1)
    cache, shard = cache_of(tmp_path / "cache", tmp_path)
    cache.folder.mkdir(mode=0o700)
    with open(cache.folder / f"{shard.name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CmdistError, match="another process has been fetching shards into .* for 1 s; end it"):
            cache.open(shard)
    assert "waiting for another process, which is fetching shards into" in capsys.readouterr().err
