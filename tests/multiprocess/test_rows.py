"""Every row of the table of objectives through the whole machine: one launch for each number of ranks trains all of
them in turn. A row is here by being in the table and in configs/digits.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmdist import config
from cmdist.errors import ConfigError
from cmdist.models import open_run
from cmdist.plan import plan
from ranks import Ranks, in_turn, killed_in_step, pipeline, traced
from runs import call, make_data, make_run
from table import BOUNDARY, CONFIGS, FILES, STEPS, arguments
from training import files, vectors

MICRO_BATCHES = 4
SHAPE = ("kind", "model_channels", "channel_mult", "num_res_blocks", "head_channels", "attention_resolutions")


class Machine:
    """Launches of all runs, each made when it is first asked for; a launch has a folder of runs of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = str(make_data(folder / "data"))
        self._codes: dict[str, dict[str, int]] = {}

    def launch(
        self, title: str, size: int, function: Callable[..., None], *first: Any, more: tuple[str, ...] = ()
    ) -> None:
        """All runs in turn on `size` ranks below the folder `title`, with teachers of the launch "ones"."""
        if title in self._codes:
            return
        checked = ["train.self_check=true" if title == "ones" else "train.self_check=false"]
        calls = [
            (
                function,
                (*first, [*arguments(name, self.folder / title, self.data, self.folder / "ones"), *checked, *more]),
            )
            for name in FILES
        ]
        if function is traced:
            calls = [
                (traced, (f"{self.folder}/{title}-{name}", *each[1])) for name, each in zip(FILES, calls, strict=True)
            ]
        ranks = Ranks(size, self.folder / f"{title}.log", in_turn, f"{self.folder}/{title}", calls)
        self._codes[title] = dict.fromkeys(FILES, 1)  # once, whatever comes of it
        assert ranks.join(60 + 30 * len(calls)) == [0] * size, ranks.text
        codes = [json.loads((self.folder / f"{title}-{rank}.json").read_text()) for rank in range(size)]
        self._codes[title] = {
            name: max(each, key=abs) for name, each in zip(FILES, zip(*codes, strict=True), strict=True)
        }

    def ended(self, title: str, name: str, code: int = 0) -> None:
        assert self._codes[title][name] == code, (self.folder / f"{title}.log").read_text()

    def trace(self, title: str, name: str) -> dict[int, Any]:
        """By the number of the micro-batch, what it was made of and its loss."""
        paths = self.folder.glob(f"{title}-{name}-[0-9].json")
        return {entry["g"]: entry for path in paths for entry in json.loads(path.read_text())}

    def same(self, title: str, name: str, begin: int) -> None:
        """From step `begin` on a launch has seen what one rank has, and learned the same up to rounding."""
        one, many = self.trace("ones", name), self.trace(title, name)
        assert sorted(many) == list(range(begin * MICRO_BATCHES, STEPS * MICRO_BATCHES))
        assert {g: e["hash"] for g, e in many.items()} == {g: one[g]["hash"] for g in many}
        for step in range(begin, STEPS):
            losses = [
                sum(trace[MICRO_BATCHES * step + m]["loss"] for m in range(MICRO_BATCHES)) for trace in (one, many)
            ]
            assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-7), f"step {step}"
        ours = vectors(self.folder / "ones" / name, STEPS)
        for vector, values in vectors(self.folder / title / name, STEPS).items():
            # a pair as near as that of a truncated model has a gradient that rounding moves a little more
            most = 1e-4 if vector.startswith("exp") else 1e-5
            assert (values - ours[vector]).norm() <= most * ours[vector].norm(), vector


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = Machine(tmp_path_factory.mktemp("table"))
    made.launch("ones", 1, traced)
    for name in FILES:
        made.ended("ones", name)
    return made


def kill(machine: Machine) -> None:
    """A launch that is killed in the second step after the checkpoint half-way; "moved" is a copy of what it leaves."""
    machine.launch("killed", 1, killed_in_step, BOUNDARY + 1)
    for title in ("resumed", "moved"):
        if not (machine.folder / title).exists():
            shutil.copytree(machine.folder / "killed", machine.folder / title)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_killed_run_goes_on_bit_for_bit(machine: Machine, name: str) -> None:
    kill(machine)
    machine.ended("killed", name, -signal.SIGKILL)
    machine.launch("resumed", 1, traced)
    machine.ended("resumed", name)
    for step in (BOUNDARY, STEPS):
        assert files(machine.folder / "resumed" / name, step) == files(machine.folder / "ones" / name, step)
    assert min(machine.trace("resumed", name)) == BOUNDARY * MICRO_BATCHES


@pytest.mark.parametrize("name", FILES)
def test_two_ranks_see_the_same(machine: Machine, name: str) -> None:
    machine.launch("twos", 2, traced, more=("train.zero_stage=2",))
    machine.ended("twos", name)
    machine.same("twos", name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_four_ranks_go_on_where_one_was_killed_and_stages_change(machine: Machine, name: str) -> None:
    kill(machine)
    machine.launch("moved", 4, traced, more=("train.zero_stage=0",))
    machine.ended("moved", name)
    machine.same("moved", name, BOUNDARY)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_half_precision_trains(machine: Machine, name: str) -> None:
    machine.launch("halves", 2, traced, more=("train.precision=bf16", f"train.steps={BOUNDARY}"))
    machine.ended("halves", name)


@pytest.mark.parametrize("name", FILES)
def test_it_is_planned(name: str, tmp_path: Path) -> None:
    made = config.load(CONFIGS / f"{name}.yaml", arguments(name, tmp_path, "x")[1:])
    planned = plan(made, 2)
    assert planned.flops >= 2.9 * planned.forward_flops > 0 and planned.total_memory > 0
    assert ("teacher" in planned.memory) == (made.teacher not in (None, "exact"))
    assert ("frozen helper" in planned.memory) == (made.frozen is not None)


@pytest.mark.parametrize("name", FILES)
def test_it_is_measured_looked_at_and_exported(machine: Machine, name: str, tmp_path: Path) -> None:
    run = machine.folder / "ones" / name
    usual = open_run(str(run)).config.usual_steps(STEPS)
    call(pipeline("evaluate").main, run, "--n", 128, "--metrics", "fd")
    assert len(list((run / "evaluations").glob("*.json"))) == len(usual)
    call(pipeline("glance").main, run, "--checkpoint", STEPS)
    assert len(list((run / "glances").glob("*.png"))) == len(usual)
    pipeline("sample").main([str(run), "--rows", "1", "--out", str(tmp_path / "samples.png")])
    pipeline("export").main([str(run), "--format", "safetensors", "--out", str(tmp_path / "weights")])
    with pytest.raises(ConfigError, match=r"ConsistencyModelPipeline|diffusers"):
        pipeline("export").main([str(run), "--out", str(tmp_path / "diffusers")])


@pytest.mark.slow
def test_they_are_compared(tmp_path: Path) -> None:
    """Runs that MLflow knows: what is trained in this file is not tracked, for the seconds that this takes."""
    data, runs = make_data(tmp_path / "data"), []
    for name, tree in FILES.items():
        network = {"model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "head_channels": 8}
        network |= {key: value for key, value in tree["network"].items() if key not in SHAPE}
        own = {key: tree[key] for key in ("init", "noise", "sampling") if key in tree}
        runs.append(make_run(tmp_path, name, data, objective=tree["objective"], network=network, **own))
        call(pipeline("evaluate").main, runs[-1], "--n", 128, "--metrics", "fd")
    call(pipeline("compare").main, *runs, "--html", tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert all(run.name in report for run in runs)
