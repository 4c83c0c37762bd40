"""Temporary folders go with their process, or with the next one after it was killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cmdist.system import scratch

HOLD = """
import sys, time
from cmdist.system import scratch
with scratch.folder() as folder:
    (folder / "shard.tar").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_has_left_goes_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    foreign = tmp_path / "cmdist-something-else"
    foreign.mkdir()
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    try:
        places = [Path(holder.stdout.readline().strip()) for holder in holders]  # type: ignore[union-attr]
        holders[0].kill()
        holders[0].wait()
        assert scratch.sweep() == 0 and places[0].exists(), "it may be just being made"
        monkeypatch.setattr(scratch, "YOUNG", 0.0)
        with scratch.folder() as mine:
            assert not places[0].exists() and (places[1] / "shard.tar").exists()
            assert sorted(tmp_path.iterdir()) == sorted([mine, places[1], foreign])
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
