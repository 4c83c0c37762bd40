import json

import pytest
import safetensors.torch
import torch

from cmdist.distributed import World
from cmdist.errors import CheckpointError, LookupFailed
from cmdist.train import checkpoint
from cmdist.train.layout import Layout
from cmdist.train.saver import Saver, Snapshot

LAYOUT = Layout.make([("b.weight", (3, 4)), ("a.bias", (5,))])


def snapshot(value: float = 0.0) -> Snapshot:
    vector = torch.arange(LAYOUT.total, dtype=torch.float32) + value
    return Snapshot(0, {"master": vector, "exp_avg": -vector}, {0.99: vector / 3, 0.5: vector / 7}, {"optimizer_step": 4})


def save(run: str, *steps: int, keep: int = 0) -> None:
    saver = Saver(run, "id", LAYOUT, World(), keep)
    for step in steps:
        saver.save(step, snapshot(step))
    saver.wait()


def test_what_is_saved_is_read_back_by_any_range(tmp_path) -> None:
    save(str(tmp_path), 10)
    found = checkpoint.newest(str(tmp_path))
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
    assert checkpoint.newest(run) is None
    save(run, 10, 20)
    (tmp_path / "checkpoints" / "step-0000000020" / "COMMIT").unlink()
    found = checkpoint.newest(run)
    assert found is not None and found.step == 10


def test_only_the_newest_are_kept(tmp_path) -> None:
    save(str(tmp_path), 1, 2, 3, 4, keep=2)
    assert checkpoint.steps(str(tmp_path)) == [3, 4]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_foreign_names_are_not_checkpoints(tmp_path) -> None:
    save(str(tmp_path), 5)
    (tmp_path / "checkpoints" / "step-12").mkdir()
    (tmp_path / "checkpoints" / "step-12" / "COMMIT").write_text("{}")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert checkpoint.steps(str(tmp_path)) == [5]


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
    found = checkpoint.newest(str(tmp_path))
    assert found is not None
    with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
        found.verify()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "COMMIT is damaged"),
        ("{}", "COMMIT is damaged"),
        (json.dumps({"format": checkpoint.FORMAT + 1, "step": 5, "files": {"state.json": {}}}), "use a newer one"),
        (json.dumps({"format": checkpoint.FORMAT, "step": 6, "files": {"state.json": {}}}), "belongs to step 6, not to 5"),
    ],
)
def test_a_wrong_commit_is_refused(tmp_path, content: str, says: str) -> None:
    save(str(tmp_path), 5)
    (tmp_path / "checkpoints" / "step-0000000005" / "COMMIT").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.newest(str(tmp_path))


def test_could_not_look_is_not_none_there(tmp_path, monkeypatch) -> None:
    def fail(url: str) -> list[str]:
        raise PermissionError("no")

    monkeypatch.setattr(checkpoint.storage, "names", fail)
    with pytest.raises(LookupFailed, match="could not look for checkpoints") as error:
        checkpoint.newest(str(tmp_path))
    assert error.value.exit_code == 3


def test_an_error_in_the_background_comes_out(tmp_path, monkeypatch) -> None:
    def fail(url: str, data: object) -> None:
        raise OSError("disk full")

    saver = Saver(str(tmp_path), "id", LAYOUT, World())
    monkeypatch.setattr(checkpoint.storage, "write", fail)
    saver.save(1, snapshot())
    with pytest.raises(CheckpointError, match="step 1 .* was not committed: rank 0: OSError: disk full"):
        saver.wait()
    assert checkpoint.newest(str(tmp_path)) is None
