"""pipelines/checkpoints.py: list, verify, thin, copy; on a folder and on an S3 server."""

from pathlib import Path

import pytest
import torch

from cmdist.checkpoints import checkpoint, sealed, search
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.saver import Saver, Snapshot
from cmdist.errors import CheckpointError, CmdistError, ConfigError, Damaged
from cmdist.system import storage
from cmdist.system.distributed import World
from ranks import pipeline

LAYOUT = Layout.make([("w", (40,))])
main = pipeline("checkpoints").main


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    url = f"{s3}/run" if request.param == "s3" else str(tmp_path / "run")
    saver = Saver(url, "id", LAYOUT, World())
    for step in (100, 200, 300, 400):
        vector = torch.arange(40.0) + step
        assert saver.ready(step, last=False)
        saver.save(step, Snapshot(0, {"master": vector}, {0.9: vector}, {"identity": {}}))
    saver.wait()
    storage.write(f"{url}/run.json", sealed.seal({"id": "id", "tracking_uri": "none"}))
    storage.write(f"{url}/config.yaml", b"objective: any\n")
    return url


def flip(url: str) -> None:
    data = bytearray(storage.read(url))
    data[-1] ^= 1
    storage.write(url, bytes(data))


def test_list_and_verify(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", run])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].split() == ["step", "attempt", "bytes", "age", "ranks", "verified", "what"]
    folder = checkpoint.folder(run, 100)
    size = sum(storage.size(f"{folder}/{name}") for name in storage.names(folder) if name != "COMMIT")
    fields = lines[1].split()
    assert fields[:3] == ["100", "0", f"{size:,}"] and fields[4:] == ["s", "1", "no", "whole"]
    main(["verify", run, "--step", "100"])
    assert capsys.readouterr().out.startswith(f"step 100: 3 files, {size:,} bytes are right")
    flip(f"{checkpoint.folder(run, 300)}/ema-0.9.safetensors")
    with pytest.raises(Damaged, match="1 of 4 checkpoints of .* are damaged: step 300"):
        main(["verify", run])
    assert "step 300: checkpoint" in capsys.readouterr().out
    main(["list", run])
    assert [line.split()[6] for line in capsys.readouterr().out.splitlines()[1:]] == ["yes", "yes", "no", "yes"]
    for url, step in ((run, ["--step", "7"]), (run + "-none", [])):
        with pytest.raises(CheckpointError, match="has no (committed )?checkpoint"):
            main(["verify", url, *step])


def test_thin(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write(f"{run}/evaluations/step-0000000100-x.json", b"{}")
    with pytest.raises(ConfigError, match="--last must be 1 or more"):
        main(["thin", run, "--last", "0", "--every", "0"])
    main(["thin", run, "--last", "1", "--every", "300"])
    assert search.steps(run) == [100, 300, 400]
    assert capsys.readouterr().out.splitlines() == [
        f"removed            {checkpoint.folder(run, 200)}",
        f"averages only now  {checkpoint.folder(run, 100)}",
        "3 steps are left",
    ]
    flip(f"{checkpoint.folder(run, 400)}/slices-00000-of-00001.safetensors")
    with pytest.raises(Damaged):
        main(["thin", run, "--last", "1", "--every", "0"])
    assert search.steps(run) == [100, 300, 400], "nothing goes before the newest is known to be right"


def test_thin_to_the_newest(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["thin", run, "--last", "1", "--every", "0"])
    assert search.steps(run) == [400] and capsys.readouterr().out.splitlines()[-1] == "1 step is left"


def test_copy(run: str, tmp_path: Path) -> None:
    there = str(tmp_path / "there")
    main(["copy", run, there])
    main(["copy", f"{run}/checkpoints/step-0000000200", there])
    assert search.steps(there) == [200, 400]
    for step in (200, 400):
        copied = search.open_checkpoint(there, step)
        copied.verify()
        assert torch.equal(copied.read_state("master", 0, 40), torch.arange(40.0) + step)
    flip(f"{checkpoint.folder(run, 300)}/state.json")
    with pytest.raises(Damaged, match="state.json"):
        main(["copy", f"{run}/checkpoints/step-0000000300", there])
    assert search.steps(there) == [200, 400]
    storage.write(f"{there}/run.json", sealed.seal({"id": "another", "tracking_uri": "none"}))
    with pytest.raises(CmdistError, match="is another run; copy into a folder of its own"):
        main(["copy", run, there])
