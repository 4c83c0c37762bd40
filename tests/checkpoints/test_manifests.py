"""Points B.1 and C: names and sizes that a manifest says are those of files in its folder, or it is damaged."""

import json
import os
from pathlib import Path

import pytest
import torch

from cmdist.checkpoints import checkpoint, documents, sealed, search
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.saver import Saver
from cmdist.checkpoints.snapshot import Snapshot
from cmdist.data import index
from cmdist.data.images import open_dataset
from cmdist.data.preparing.shards import write_dataset
from cmdist.errors import CmdistError, Damaged, DataError
from cmdist.system import storage
from cmdist.system.distributed import World
from conftest_data import numbered
from ranks import pipeline

main = pipeline("checkpoints").main
LAYOUT = Layout.make([("w", (40,))])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    url = str(tmp_path / "run")
    saver = Saver(url, "id", LAYOUT, World())
    vector = torch.arange(40.0)
    assert saver.ready(100, last=False)
    saver.save(100, Snapshot(0, {"master": vector}, {0.9: vector}, {"identity": {}}))
    saver.wait()
    storage.write(f"{url}/run.json", sealed.seal({"id": "id", "tracking_uri": "none", "experiment": "x"}))
    storage.write(f"{url}/config.yaml", b"objective: any\n")
    return tmp_path / "run"


def folder(run: Path) -> Path:
    return Path(checkpoint.folder(str(run), 100))


def change(path: Path, edit: object) -> None:
    record = sealed.read(str(path))
    edit(record)  # type: ignore[operator]
    path.write_bytes(sealed.seal(record))


NAMES = ["../../x", "/etc/x", "a/b", "..", "a\\b", "a:b", "a\0b", ""]


@pytest.mark.parametrize("name", NAMES)
def test_b1_copy_writes_no_name_that_leads_out_of_the_folder(run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "x"
    victim.write_text("precious")
    change(folder(run) / "COMMIT", lambda commit: commit["files"].update({name: commit["files"]["state.json"]}))
    with pytest.raises(CmdistError, match="a plain file name is needed|is damaged"):
        main(["copy", str(run), str(tmp_path / "to")])
    assert victim.read_text() == "precious" and not list((tmp_path).rglob("to/**/COMMIT"))


@pytest.mark.parametrize("name", NAMES)
def test_b1_no_slice_and_no_extractor_lies_elsewhere(tmp_path: Path, name: str) -> None:
    state = {"emas": [], "layout": [["w", [1]]], "slices": [{"file": name, "start": 0, "stop": 1}]}
    with pytest.raises(Damaged, match="a plain file name is needed"):
        documents.WHOLE.check(state, "state.json")
    write_dataset(str(tmp_path / "set"), numbered(4))
    path = tmp_path / "set" / "index.json"
    tree = json.loads(path.read_text())
    for spoilt in (
        tree | {"extractor": {"file": name, "checksum": ""}},
        tree | {"shards": [tree["shards"][0] | {"name": f"{name}.tar" if name.strip(".") else name}]},
    ):
        path.write_text(json.dumps(spoilt))
        if name != "" or spoilt["extractor"]:
            with pytest.raises(DataError, match="a plain file name"):
                open_dataset(str(tmp_path / "set"))
    assert index.SHARD_NAME.fullmatch("a.tar")


@pytest.mark.parametrize(
    "entry",
    [
        {"size": 2**61},
        {"size": 2**61, "blocks": ["0"] * 3},
        {"size": 10, "blocks": ["0"] * 1000},
        {"size": 2**61, "blocks": []},
    ],
)
def test_c_sizes_beyond_the_blocks_of_a_file_are_damage_at_once(run: Path, entry: dict[str, object]) -> None:
    change(folder(run) / "COMMIT", lambda commit: commit["files"]["state.json"].update(entry))
    opened = search.open_folder(str(folder(run)))
    for read in (lambda: opened.state, opened.verify):
        with pytest.raises(Damaged, match="is damaged"):
            read()


def test_c_a_block_of_one_byte_for_a_large_file_is_damage_at_once(run: Path) -> None:
    def edit(commit: dict[str, object]) -> None:
        commit["block_size"] = 1
        commit["files"]["state.json"]["size"] = 2**61  # type: ignore[index]

    change(folder(run) / "COMMIT", edit)
    with pytest.raises(Damaged, match=r"COMMIT has 1 blocks of 1 bytes for the \d+ of "):
        search.open_folder(str(folder(run))).verify()


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**6])
def test_c_a_header_longer_than_its_file_is_damage(run: Path, length: int) -> None:
    name = next(path.name for path in folder(run).iterdir() if path.name.startswith("ema"))
    path = folder(run) / name
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    entry = checkpoint.describe([path.read_bytes()])
    change(folder(run) / "COMMIT", lambda commit: commit["files"].update({name: entry}))
    with pytest.raises(Damaged, match="its header has no end"):
        search.open_folder(str(folder(run)))._header(name)


def test_b7_what_damaged_says_moves_no_cursor(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder(run) / "DAMAGED").write_bytes(b"\x1b[2J\x1b]0;mine\x07\xff" + b"x" * 10**6)
    main(["list", str(run)])
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[2J" in said and len(said) < 2000


def test_c_a_pipe_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    for read in (storage.read, lambda url: storage.read_ranges(url, [(0, 1)])):
        with pytest.raises(CmdistError, match=r"weights\.safetensors is no file but a pipe, a device or a socket$"):
            read(str(tmp_path / "weights.safetensors"))
