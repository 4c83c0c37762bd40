"""The first hour: its parts end, fail and run out of time one by one, and all of them run on a CPU."""

import importlib
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ranks import REPOSITORY, pipeline

sys.path.append(str(REPOSITORY / "pipelines"))
from benchmarks.first_hour import schedule, steps
from benchmarks.first_hour.schedule import Part, Setup, first_error, run_all


def scheduled(tmp_path: Path, seconds: float, **scripts: str) -> dict[str, dict[str, Any]]:
    """Parts that are Python scripts, which find a folder of their own in FOUND."""
    parts = [Part(name, f"part {name}", 0.5, "") for name in scripts]
    tell = f"import json, os, subprocess, sys, time; found = r'{tmp_path}/out/parts/%s.found'\n"
    setup = Setup("cpu", tmp_path / "out")
    rows = run_all(parts, lambda part: [sys.executable, "-c", tell % part.name + scripts[part.name]], seconds, setup)
    assert json.loads((setup.out / "table.json").read_text()) == rows
    assert [json.loads((setup.out / "parts" / f"{name}.json").read_text()) for name in scripts] == rows
    assert len((setup.out / "table.md").read_text().splitlines()) == 2 + len(scripts)
    return {row["part"]: row for row in rows}


def test_a_part_that_fails_is_told_by_its_first_error_and_ends_no_other(tmp_path: Path) -> None:
    rows = scheduled(
        tmp_path,
        100.0,
        broken="print('before'); sys.stderr.write('ValueError: the cause\\nRuntimeError: an echo\\n'); sys.exit(3)",
        dumb="sys.exit(4)",
        sound="open(found, 'w').write(json.dumps({'speed': 12.3456, 'long': 'x' * 200}))",
    )
    assert [(row["state"], row["reason"]) for row in rows.values()] == [
        ("failed", "ValueError: the cause"),
        ("failed", "exit code 4"),
        ("done", ""),
    ]
    assert rows["sound"]["found"]["speed"] == 12.3456
    assert "| part sound | done | 0 | speed 12.35 |" in (tmp_path / "out" / "table.md").read_text()


def test_a_part_that_hangs_is_cut_off_with_its_processes_and_what_it_found_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SHORTEST", 0.5)
    begin = time.monotonic()
    rows = scheduled(
        tmp_path,
        6.0,
        hangs="open(found, 'w').write('{\"first\": 1}')\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open(r'{tmp_path}/pid', 'w').write(str(child.pid)); time.sleep(60)",
        next="time.sleep(0.1)",
    )
    assert time.monotonic() - begin < 20
    assert rows["hangs"]["state"] == "cut off" and rows["hangs"]["reason"] == "not done after its 3 s"
    assert rows["hangs"]["found"] == {"first": 1} and rows["next"]["state"] == "done"
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.slow  # inductor
def test_half_a_compiled_library_of_a_part_that_is_cut_off_is_in_nobody_elses_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SHORTEST", 0.5)
    shared = tmp_path / "cache-of-all"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    writes = """
import pathlib, tempfile
from torch._inductor.runtime.cache_dir_utils import cache_dir
for folder in cache_dir(), tempfile.gettempdir():
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    pathlib.Path(folder, 'half.so').write_bytes(b'half')
open(found, 'w').write(json.dumps({'folder': folder, 'cache': cache_dir()}))
"""
    rows = scheduled(tmp_path, 40.0, cut=writes + "time.sleep(60)", whole=writes)
    assert [row["state"] for row in rows.values()] == ["cut off", "done"]
    folders = {row["found"][key] for row in rows.values() for key in ("folder", "cache")}
    assert len(folders) == 4 and not any(Path(folder).exists() for folder in folders) and not shared.exists()


def test_when_time_is_out_later_parts_are_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SHORTEST", 1.0)
    rows = scheduled(tmp_path, 1.0, long="time.sleep(1.2)", later="sys.exit(1)")
    assert [row["state"] for row in rows.values()] == ["cut off", "skipped"]
    assert rows["later"]["reason"] == "0 s were left"


def test_the_time_is_shared_among_the_parts_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def run(part: Part, command: list[str], wanted: float, *rest: Any) -> dict[str, Any]:
        limits.append(wanted)
        return {"part": part.name, "title": "", "state": "done", "reason": "", "seconds": 0.0, "found": {}}

    monkeypatch.setattr(schedule, "_run", run)
    setup, parts = Setup("cpu", tmp_path), [Part("a", "", 0.15, ""), Part("b", "", 0.05, "")]
    run_all(parts, lambda part: [], 800.0, setup)
    run_all([*parts, Part("c", "", 1.8, "")], lambda part: [], 800.0, setup)
    assert limits == pytest.approx([600.0, 200.0, 120.0, schedule.SHORTEST, 1440.0])


def test_each_objective_has_a_recipe_that_starts_from_nothing_if_it_can(tmp_path: Path) -> None:
    setup = Setup("cpu", tmp_path)
    kinds = [kind for kind in steps.objectives() if kind not in steps.KNOWN and not steps.follows_a_run(kind)]
    starts = {kind: steps.of_kind(setup, kind).init for kind in kinds}
    assert len(kinds) > 9 and {kind for kind in kinds if starts[kind]} == {"progressive_distillation"}


def test_parts_do_not_take_themselves_for_ranks_of_the_job_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_NTASKS", "PMIX_RANK"):
        monkeypatch.setenv(name, "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = schedule.environment("cuda")
    assert not found.keys() & {"RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_NTASKS", "PMIX_RANK"}
    assert found["OMP_NUM_THREADS"] == "3"
    assert schedule.environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""


def test_the_first_error_is_found_among_other_lines() -> None:
    text = "Traceback (most recent call last):\n  File ...\ntorch.OutOfMemoryError: CUDA out of memory\nerror: later\n"
    assert first_error(text) == "torch.OutOfMemoryError: CUDA out of memory"
    assert first_error("10%|##\rerror: the sentence\nValueError: x") == "error: the sentence"
    assert first_error("all is well") == ""


def test_waits_are_counted_by_the_line_that_asks() -> None:
    values = torch.ones(3)
    with steps.Waits(torch.device("cpu")) as found:
        values.add_(1.0)
        for _ in range(2):
            values.sum().item()
        values[values > 1.0]
    assert sorted(found.places.values()) == [1, 2]
    assert all("test_benchmark_gpu.py" in place for place in found.places)
    assert any("values.sum().item()" in place for place in found.places)


def test_a_wait_that_torch_warns_of_is_found_where_it_was_asked_for() -> None:
    found = steps.Waits(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkey = warnings.showwarning
        warnings.showwarning = found._warned
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.showwarning = monkey
    assert list(found.places.values()) == [1] and "test_benchmark_gpu.py" in next(iter(found.places))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--minutes", "0"], "--minutes 0: a number above 0 is needed"),
        ([], "sees no GPU here; --device cpu runs the same path with small networks"),
        (["--device", "cpu"], "is not empty; results of two hours must not mix, take a new folder"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    from cmdist.errors import ConfigError

    (tmp_path / "old").touch()
    with pytest.raises(ConfigError, match=sentence):
        pipeline("benchmark").main(["gpu", "--out", str(tmp_path), *arguments])


def test_the_command_fails_if_a_part_failed_and_not_for_want_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmdist.errors import CmdistError

    pipeline("benchmark")
    gpu = importlib.import_module("benchmarks.gpu")
    rows = [{"part": "machine", "state": state, "reason": "why"} for state in ("done", "skipped", "cut off")]

    def run_all(parts: Any, command: Any, seconds: float, setup: Setup) -> list[dict[str, Any]]:
        setup.out.mkdir(exist_ok=True)
        (setup.out / "table.md").touch()
        return rows

    monkeypatch.setattr(gpu, "run_all", run_all)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    gpu.main(["--device", "cpu", "--out", str(tmp_path / "out")])
    rows.append({"part": "digits", "state": "failed", "reason": "an error"})
    with pytest.raises(CmdistError, match=r"^1 of 4 parts failed: digits \(an error\)$"):
        gpu.main(["--device", "cpu", "--out", str(tmp_path / "new")])


def on_a_cpu(tmp_path: Path, minutes: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """The row of each part; none failed."""
    command = [sys.executable, "pipelines/benchmark.py", "gpu", "--device", "cpu", "--minutes", minutes]
    command += ["--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return {row["part"]: row for row in json.loads((tmp_path / "out" / "table.json").read_text())}


SENSIBLE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "machine": lambda found: "1 rank on cpu" in found["pre-flight"] and found["torch"] == torch.__version__,
    "digits": lambda found: "step-0000000015" in found["committed"] and "on cpu" in found["ranks"],
    "self-check": lambda found: 0 <= found["digits"] < 0.1 and 0 <= found["ImageNet-64"] < 0.1,
    "ceilings": lambda found: found["copy on the device GB/s"] > 0,
    "micro-batch-64": lambda found: (
        found["micro_batch"] == 4 and found["all"]["precision"] == "bf16" and found["mfu"] > 0 and found["plan GB"] > 0
    ),
    "waits": lambda found: found["waits per step"] == sum(found["places"].values()),
    "features": lambda found: found["images/s, papers' resizing"] > 0,
}


@pytest.mark.slow  # CI runs the command itself
@pytest.mark.timeout(300)
def test_two_minutes_on_a_cpu_run_the_path_of_each_kind_of_part(tmp_path: Path) -> None:
    """The first call on a GPU must not be the first run of this code. Parts that a loaded machine does not get to say
    so; CI runs the same command with all parts, and the slow test below gives each its time.
    """
    every_day = ["machine", "micro-batch-64", "waits", "features"]
    rows = on_a_cpu(tmp_path, "2", "--only", *every_day)
    assert list(rows) == every_day and sum(row["seconds"] for row in rows.values()) < 130
    for name, row in rows.items():
        if row["state"] == "done":
            assert SENSIBLE[name](row["found"]), row
        else:
            assert re.fullmatch(r"not done after its \d+ s|\d+ s were left", row["reason"]), row
    assert rows["machine"]["state"] == "done"


@pytest.mark.slow  # inductor, a run that starts three times, and each recipe
@pytest.mark.timeout(2500)
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    rows = on_a_cpu(tmp_path, "40")
    states = {name: (row["state"], row["reason"]) for name, row in rows.items()}
    assert set(states.values()) == {("done", "")}, states
    found = {name: row["found"] for name, row in rows.items()}
    assert all(SENSIBLE[name](found[name]) for name in SENSIBLE)
    assert found["compile"]["all"]["compile"] is True
    for name in ("imagenet64-cd", "lsun-cd", "channels-last", "imagenet64-ct"):
        assert found[name]["micro_batch"] == 2 and found[name]["images_per_second"] > 0
    assert found["overflow"]["scale after 10 steps"] < 2.0**32
    assert (tmp_path / "out" / "profile.txt").read_text() and found["profile"]["first"][0][1] > 0
    for kind in set(steps.objectives()) - steps.KNOWN:
        assert steps.follows_a_run(kind) or found["other-objectives"][f"{kind} images_per_second"] > 0
    assert found["deterministic"]["different"] == "none" and found["deterministic"]["files"] >= 3
