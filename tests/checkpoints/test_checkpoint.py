import json

import pytest
import safetensors.torch
import torch
import xxhash

from cmdist.checkpoints import checkpoint, search
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import CheckpointError, Damaged, LookupFailed
from cmdist.system.distributed import World

LAYOUT = Layout.make([("b.weight", (3, 4)), ("a.bias", (5,))])


def snapshot(value: float = 0.0) -> Snapshot:
    vector = torch.arange(LAYOUT.total, dtype=torch.float32) + value
    return Snapshot(
        0, {"master": vector, "exp_avg": -vector}, {0.99: vector / 3, 0.5: vector / 7}, {"optimizer_step": 4}
    )


def save(run: str, *steps: int, keep: int = 0) -> None:
    saver = Saver(run, "id", LAYOUT, World(), keep=Keep(keep))
    for step in steps:
        assert saver.ready(step, last=False)
        saver.save(step, snapshot(step))
    saver.wait()


def test_what_is_saved_is_read_back_by_any_range(tmp_path) -> None:
    save(str(tmp_path), 10)
    found = search.newest(str(tmp_path))
    assert found is not None and found.step == 10
    assert found.state["optimizer_step"] == 4 and found.layout == LAYOUT and found.emas == [0.99, 0.5]
    vector = torch.arange(LAYOUT.total, dtype=torch.float32) + 10
    for start in range(LAYOUT.total + 1):
        for stop in range(start, LAYOUT.total + 1):
            assert torch.equal(found.read_state("master", start, stop), vector[start:stop])
            assert torch.equal(found.read_state("exp_avg", start, stop), -vector[start:stop])
            assert torch.equal(found.read_ema(0.99, start, stop), (vector / 3)[start:stop])


def test_an_average_is_an_ordinary_safetensors_file_with_names(tmp_path) -> None:
    save(str(tmp_path), 1)
    tensors = safetensors.torch.load_file(f"{checkpoint.folder(str(tmp_path), 1)}/ema-0.5.safetensors")
    vector = (torch.arange(LAYOUT.total, dtype=torch.float32) + 1) / 7
    assert torch.equal(tensors["b.weight"], vector[:12].view(3, 4))
    assert torch.equal(tensors["a.bias"], vector[12:])


def test_no_commit_is_no_checkpoint(tmp_path) -> None:
    run = str(tmp_path)
    assert search.newest(run) is None
    save(run, 10, 20)
    (tmp_path / "checkpoints" / "step-0000000020" / "COMMIT").unlink()
    found = search.newest(run)
    assert found is not None and found.step == 10


def test_only_the_newest_are_kept(tmp_path) -> None:
    save(str(tmp_path), 1, 2, 3, 4, keep=2)
    assert search.steps(str(tmp_path)) == [3, 4]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_foreign_names_are_not_checkpoints(tmp_path) -> None:
    save(str(tmp_path), 5)
    (tmp_path / "checkpoints" / "step-12").mkdir()
    (tmp_path / "checkpoints" / "step-12" / "COMMIT").write_text("{}")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert search.steps(str(tmp_path)) == [5]


@pytest.mark.parametrize("name", ["state.json", "ema-0.99.safetensors", "slices-00000-of-00001.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_file_is_named(tmp_path, name: str, damage: str) -> None:
    save(str(tmp_path), 5)
    path = tmp_path / "checkpoints" / "step-0000000005" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-3])
    found = search.newest(str(tmp_path))
    assert found is not None
    with pytest.raises(CheckpointError, match=f"is damaged: {name} (is missing|has )"):
        found.verify()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "COMMIT is damaged"),
        ("{}", "COMMIT is damaged"),
        (json.dumps({"format": checkpoint.FORMAT + 1, "step": 5, "files": {}}), "use a newer one"),
        (
            json.dumps({"format": checkpoint.FORMAT, "step": 6, "files": {}}),
            "belongs to step 6 by attempt 0, not to step 5",
        ),
        (json.dumps({"format": checkpoint.FORMAT, "step": 5, "files": {"state.json": {}}}), "COMMIT is damaged"),
    ],
)
def test_a_wrong_commit_is_refused(tmp_path, content: str, says: str) -> None:
    save(str(tmp_path), 5)
    (tmp_path / "checkpoints" / "step-0000000005" / "COMMIT").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        search.newest(str(tmp_path))


def test_could_not_look_is_not_none_there(tmp_path, monkeypatch) -> None:
    def fail(url: str) -> list[str]:
        raise PermissionError("no")

    monkeypatch.setattr(checkpoint.storage, "names", fail)
    with pytest.raises(LookupFailed, match="could not look for checkpoints") as error:
        search.newest(str(tmp_path))
    assert error.value.exit_code == 3


def test_a_large_file_is_read_by_verified_blocks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 64)
    save(str(tmp_path), 5)
    found = search.newest(str(tmp_path))
    assert found is not None
    name = "slices-00000-of-00001.safetensors"
    path = tmp_path / "checkpoints" / "step-0000000005" / name
    data = path.read_bytes()
    assert [xxhash.xxh3_128_hexdigest(data[i : i + 64]) for i in range(0, len(data), 64)] == found.commit["files"][
        name
    ]["blocks"]
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # in the last block only
    vector = torch.arange(LAYOUT.total, dtype=torch.float32) + 5
    assert torch.equal(found.read_state("master", 0, 17), vector)
    with pytest.raises(Damaged, match=name):
        found.read_state("exp_avg", 0, 17)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_fetch_everything_once_and_load_without_reading_again(tmp_path, monkeypatch, world: int) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 32)
    layout = Layout.make([("w", (4000,))])
    vector = torch.arange(4000, dtype=torch.float32)
    saver = Saver(str(tmp_path), "id", layout, World())
    saver.save(1, Snapshot(0, {"master": vector, "exp_avg": -vector}, {0.5: vector / 7}, {}))
    saver.wait()
    read, plain = [0], checkpoint.storage.read_ranges

    def counting(url, ranges):
        read[0] += sum(high - low for low, high in ranges)
        return plain(url, ranges)

    monkeypatch.setattr(checkpoint.storage, "read_ranges", counting)
    size = 3 * 4 * 4000
    for rank in range(world):
        found = search.newest(str(tmp_path))
        assert found is not None and found.state
        read[0] = 0
        found.fetch(rank, world)
        assert size / world <= read[0] <= size / world + 24 * 32  # headers, and blocks that two ranks share
        fetched, (start, stop) = read[0], (4000 * rank // world, 4000 * (rank + 1) // world)
        assert torch.equal(found.read_state("master", start, stop), vector[start:stop])
        assert torch.equal(found.read_ema(0.5, start, stop), (vector / 7)[start:stop])
        assert read[0] == fetched


def test_neighbouring_blocks_are_read_together(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 32)
    monkeypatch.setattr(checkpoint, "REQUEST", 100)  # so three blocks at most
    layout = Layout.make([("w", (4000,))])
    saver = Saver(str(tmp_path), "id", layout, World())
    saver.save(1, Snapshot(0, {"master": torch.arange(4000.0)}, {}, {}))
    saver.wait()
    found = search.newest(str(tmp_path))
    assert found is not None and found.state
    asked, plain = [], checkpoint.storage.read_ranges

    def spoiling(url, ranges):
        asked.append([high - low for low, high in ranges])
        read = plain(url, ranges)
        return [b"?" + read[0][1:], *read[1:]] if len(asked) == 1 else read

    monkeypatch.setattr(checkpoint.storage, "read_ranges", spoiling)
    assert torch.equal(found.read_state("master", 800, 1600), torch.arange(800.0, 1600.0))
    assert asked[-2] == [96] * 33 + [64], "3,200 bytes in 101 blocks"
    assert asked[-1] == [32], "only the block with the wrong byte is read again"
    assert [*checkpoint._runs([1, 2, 3, 7, 9, 10], 2)] == [
        range(1, 3),
        range(3, 4),
        range(7, 8),
        range(9, 11),
    ] and not [*checkpoint._runs([], 2)]


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_format_is_read(tmp_path, monkeypatch, version: int) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 8 * 2**20)
    save(str(tmp_path), 5)
    path = tmp_path / "checkpoints" / "step-0000000005" / "COMMIT"
    commit = json.loads(path.read_text()) | {"format": version}
    del commit["block_size"], commit["seal"]
    if version == 1:  # no blocks, no attempts
        del commit["attempt"]
        for entry in commit["files"].values():
            del entry["blocks"]
    path.write_text(json.dumps(commit))
    found = search.newest(str(tmp_path))
    assert found is not None
    found.fetch(0, 1)
    assert torch.equal(found.read_state("master", 3, 9), torch.arange(3.0, 9.0) + 5)
