"""Any number of ranks: the same images and noise at every step, the same losses up to rounding, and a resume on other
ranks.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ranks import Ranks, pipeline, traced
from ranks import train as train_on
from training import OBJECTIVES, committed, files, vectors, write_config

STEPS = 40  # of 16 samples: past the first block, which has 600


@pytest.mark.parametrize("objective", [pytest.param("denoising", marks=pytest.mark.slow), "cd", "ct"])
def test_1_2_and_4_ranks_see_the_same(tmp_path: Path, digits: str, objective: str) -> None:
    config = write_config(tmp_path, digits)
    found = {}
    for size in (1, 2, 4):
        folder = tmp_path / f"on{size}"
        folder.mkdir()
        arguments = [
            config,
            f"run.name=on{size}",
            *OBJECTIVES[objective],
            f"train.steps={STEPS}",
            "train.self_check=false",
        ]
        ranks = Ranks(size, folder / "log", traced, str(folder / "trace"), arguments)
        assert ranks.join() == [0] * size, ranks.text
        entries = [entry for path in folder.glob("trace*.json") for entry in json.loads(path.read_text())]
        found[size] = {entry["g"]: entry for entry in entries}
        assert sorted(found[size]) == list(range(4 * STEPS)) and len(entries) == 4 * STEPS
    for size in (2, 4):
        assert {g: e["hash"] for g, e in found[size].items()} == {g: e["hash"] for g, e in found[1].items()}
        for step in range(STEPS):
            losses = [sum(found[s][4 * step + m]["loss"] for m in range(4)) / 4 for s in (1, size)]
            assert losses[1] == pytest.approx(losses[0], rel=1e-5), f"step {step}"


def test_a_run_may_change_its_ranks_and_stage(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    run = tmp_path / "runs" / "small"
    steps = 0
    for size, stage in ((4, 1), (2, 2), (1, 0), (2, 0), (1, 1)):
        before = vectors(run, steps) if steps else None
        steps += 5
        ranks = train_on(
            size,
            tmp_path / f"{steps}.log",
            config,
            *OBJECTIVES["ct"],
            f"train.steps={steps}",
            f"train.zero_stage={stage}",
        )
        assert ranks.join() == [0] * size, ranks.text
        assert committed(run, steps)
        if before:
            assert {k: v.shape for k, v in vectors(run, steps).items()} == {k: v.shape for k, v in before.items()}


def test_load_then_save_changes_no_bit(tmp_path: Path, digits: str) -> None:
    """What 4 ranks of ZeRO 1 saved is loaded by 2 ranks of each stage and saved again as it was."""
    config = write_config(tmp_path, digits)
    assert train_on(4, tmp_path / "a.log", config, *OBJECTIVES["ct"], "train.steps=6").join() == [0] * 4
    run, saved = tmp_path / "runs" / "small", tmp_path / "saved"
    shutil.copytree(run, saved)
    for stage in (0, 1, 2):
        shutil.rmtree(run)
        shutil.copytree(saved, run)
        ranks = Ranks(
            2,
            tmp_path / f"{stage}.log",
            resaved,
            [config, *OBJECTIVES["ct"], "train.steps=8", f"train.zero_stage={stage}"],
        )
        assert ranks.join() == [0, 0], ranks.text
        before, after = vectors(run, 6), vectors(run, 7)
        assert before.keys() == after.keys()
        for kind in before:
            assert torch.equal(before[kind], after[kind]), (stage, kind)


def resaved(arguments: list[str]) -> None:
    """Load, and save as step 7 without taking a step."""
    from cmdist.train.trainer import Trainer

    def only_save(self: Trainer) -> bool:
        self.step += 1
        self.save(last=True)
        self.saver.wait()
        return True

    Trainer.fit = only_save  # type: ignore[method-assign]
    pipeline("train").main(arguments)


def test_stages_take_the_same_steps(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    for stage in (0, 1, 2):
        ranks = train_on(
            2, tmp_path / f"{stage}.log", config, f"run.name=z{stage}", "train.steps=10", f"train.zero_stage={stage}"
        )
        assert ranks.join() == [0, 0], ranks.text
    for stage in (1, 2):
        for kind, vector in vectors(tmp_path / "runs" / f"z{stage}", 10).items():
            torch.testing.assert_close(vector, vectors(tmp_path / "runs" / "z0", 10)[kind], rtol=1e-4, atol=1e-6)
    assert files(tmp_path / "runs" / "z1", 10).keys() == files(tmp_path / "runs" / "z2", 10).keys()
