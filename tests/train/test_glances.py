"""What Glances starts, without the real glance: a script that writes down how it was started."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from cmdist.errors import ConfigError
from cmdist.train.glance import Glances

SCRIPT = """
import json, os, sys, time
folder, seconds = sys.argv[1], float(sys.argv[2])
step = sys.argv[sys.argv.index("--checkpoint") + 1]
group = "/proc/self/autogroup"
for _ in range(100):
    share = open(group).read() if os.path.exists(group) else None
    if share is None or share.split()[-1] == "19":
        break
    time.sleep(0.02)
started = {"share": share, "nice": os.nice(0), "session": os.getsid(0), "env": dict(os.environ)}
started["stdin"] = sys.stdin.read()
open(f"{folder}/{step}.new", "w").write(json.dumps(started))
os.rename(f"{folder}/{step}.new", f"{folder}/{step}.json")
time.sleep(seconds)
print("step", step)
sys.exit(7)
"""


def make(folder: Path, seconds: float = 0.0, device: str = "cpu", every: int = 10, start: int = 0) -> Glances:
    return Glances(
        [sys.executable, "-c", SCRIPT, str(folder), str(seconds)], every, device, folder / "logs" / "glance.log", start
    )


def started(folder: Path, step: int) -> dict:
    deadline = time.monotonic() + 20
    while not (folder / f"{step}.json").exists():
        assert time.monotonic() < deadline, f"no glance at {step}"
        time.sleep(0.02)
    return json.loads((folder / f"{step}.json").read_text())


def wait(glances: Glances) -> None:
    assert glances._process and glances._process.wait(20) == 7


def test_a_glance_is_of_lowest_priority_in_its_own_session_and_knows_of_no_ranks(tmp_path, monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "SLURM_PROCID",
        "TORCHELASTIC_RUN_ID",
        "CROSS_SIZE",
        "LOCAL_WORLD_SIZE",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HOME_OF_RANK", "kept")
    glances = make(tmp_path)
    glances.after(None)
    glances.after(10)
    found = started(tmp_path, 10)
    wait(glances)
    assert found["share"] is None or found["share"].endswith("nice 19\n"), (
        "Linux would give its session as much as the training's"
    )
    assert found["nice"] == 19 and found["session"] != os.getsid(0) and found["stdin"] == ""
    gone = {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "SLURM_PROCID",
        "TORCHELASTIC_RUN_ID",
        "CROSS_SIZE",
        "LOCAL_WORLD_SIZE",
    }
    assert not gone & found["env"].keys() and found["env"]["HOME_OF_RANK"] == "kept"
    assert found["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert (tmp_path / "logs" / "glance.log").read_text() == "step 10\n"


def test_a_given_gpu_is_the_only_one_that_it_sees(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert make(tmp_path, device="3")._environment["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")  # what Slurm gave this job
    assert make(tmp_path, device="1")._environment["CUDA_VISIBLE_DEVICES"] == "6"
    with pytest.raises(ConfigError, match=r"train.glance_device 2: this process sees 2 GPUs \(4,6\)"):
        make(tmp_path, device="2")


def test_only_commits_that_are_due_and_one_at_a_time_the_newest_next(tmp_path):
    glances = make(tmp_path, seconds=1.0)
    for committed in (None, 5, 12, 12, 15, 20, 30):
        glances.after(committed)
    started(tmp_path, 12)
    wait(glances)
    glances.after(30)
    started(tmp_path, 30)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["12", "30"]
    glances.after(40)
    glances.close()  # the last one of the run is not lost
    started(tmp_path, 40)
    wait(glances)


def test_a_resumed_run_begins_after_its_step(tmp_path):
    glances = make(tmp_path, start=25)
    for committed in (None, 27, 29):
        glances.after(committed)
    assert glances._process is None
    glances.after(31)
    started(tmp_path, 31)
    wait(glances)


def test_what_cannot_be_started_is_a_warning(tmp_path, capsys, monkeypatch):
    glances = make(tmp_path)
    monkeypatch.setenv("PATH", "")
    glances._environment["PATH"] = ""
    glances.after(10)
    assert "warning: no glance at step 10" in capsys.readouterr().err
    glances.after(11)


@pytest.mark.parametrize("name", ["RANKING", "MASTER", "WORLD", "SIZE_OF", "MY_RANK"])
def test_other_variables_stay(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert make(tmp_path)._environment[name] == "1"
