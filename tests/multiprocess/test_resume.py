"""Exact resume: 2n steps are the same, bit for bit, as n steps, SIGKILL, resume, n steps."""

import signal
import time
from pathlib import Path

import pytest

from ranks import Ranks, killed_in_step, train
from training import OBJECTIVES, SMALL, committed, files, write_config

CASES = [
    pytest.param(objective, stage, marks=pytest.mark.slow) if stage == 2 and objective != "cd" else (objective, stage)
    for objective in OBJECTIVES
    for stage in (1, 2)
]


@pytest.mark.parametrize(("objective", "stage"), CASES)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, digits: str, objective: str, stage: int) -> None:
    config = write_config(tmp_path, digits)
    common = [*OBJECTIVES[objective], f"train.zero_stage={stage}", "train.steps=16", "train.checkpoint_every=8"]
    straight = train(2, tmp_path / "straight.log", config, "run.name=straight", *common)
    assert straight.join() == [0, 0], straight.text

    killed = Ranks(2, tmp_path / "killed.log", killed_in_step, 10, [config, "run.name=killed", *common])
    assert killed.join() == [-signal.SIGKILL, -signal.SIGKILL], killed.text
    run = tmp_path / "runs" / "killed"
    assert committed(run, 8) and not committed(run, 16)

    resumed = train(2, tmp_path / "resumed.log", config, "run.name=killed", *common)
    assert resumed.join() == [0, 0], resumed.text
    assert "step         8 of 16" in resumed.text
    assert files(run, 8) == files(tmp_path / "runs" / "straight", 8)
    assert files(run, 16) == files(tmp_path / "runs" / "straight", 16)


def test_a_request_to_stop_loses_no_step(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    common = [*OBJECTIVES["ct"], "train.steps=40", "train.checkpoint_every=1000"]
    straight = train(2, tmp_path / "straight.log", config, "run.name=straight", *common)
    assert straight.join() == [0, 0], straight.text
    stopped = train(2, tmp_path / "stopped.log", config, "run.name=stopped", *common)
    while "self-check" not in stopped.text:
        time.sleep(0.01)
    time.sleep(0.3)
    stopped.signal(signal.SIGUSR1)
    assert stopped.join() == [0, 0], stopped.text
    assert "stopped by SIGUSR1 after step" in stopped.text
    assert not committed(tmp_path / "runs" / "stopped", 40)
    resumed = train(2, tmp_path / "resumed.log", config, "run.name=stopped", *common)
    assert resumed.join() == [0, 0], resumed.text
    assert files(tmp_path / "runs" / "stopped", 40) == files(tmp_path / "runs" / "straight", 40)


def test_a_finished_run_says_so_and_does_nothing(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    assert train(1, tmp_path / "a.log", config).join() == [0]
    before = files(tmp_path / "runs" / "small", 20)
    again = train(1, tmp_path / "b.log", config)
    assert again.join() == [0]
    assert "is finished: step 20 of 20" in again.text
    assert files(tmp_path / "runs" / "small", 20) == before


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("two")
    assert train(1, folder / "a.log", write_config(folder, digits), "train.steps=2").join() == [0]
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("run.seed=5", "run.seed = 0 and cannot go on with 5"),
        ("train.global_batch=32", "train.global_batch = 16 and cannot go on with 32"),
        ("train.micro_batch=8", "train.micro_batch = 4 and cannot go on with 8"),
        ("network.model_channels=16", "network.model_channels = 8 and cannot go on with 16"),
    ],
)
def test_another_identity_is_refused(tmp_path: Path, two_steps: Path, change: str, says: str) -> None:
    before = files(two_steps / "runs" / "small", 2)
    refused = train(1, tmp_path / "b.log", str(two_steps / "small.yaml"), "train.steps=4", change)
    assert refused.join() == [2]
    assert says in refused.text and "Traceback" not in refused.text
    assert files(two_steps / "runs" / "small", 2) == before and not committed(two_steps / "runs" / "small", 4)


def test_the_report_names_what_has_changed(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    assert train(1, tmp_path / "a.log", config, *OBJECTIVES["ct"], "train.steps=10").join() == [0]
    resumed = train(2, tmp_path / "b.log", config, *OBJECTIVES["ct"], "train.steps=20", "train.zero_stage=2")
    assert resumed.join() == [0, 0], resumed.text
    for line in (
        "step         10 of 20   epoch 0   samples seen 160",
        "curriculum   n_timesteps = ",
        "ranks        2 on cpu, ZeRO 2, 2 micro-batches each (was 1, ZeRO 1)",
        "changed      train.steps: 10 -> 20; train.zero_stage: 1 -> 2",
    ):
        assert line in resumed.text, resumed.text


def test_bf16_needs_no_other_code(tmp_path: Path, digits: str) -> None:
    text = SMALL.replace("precision: fp32", "precision: bf16")
    run = train(2, tmp_path / "a.log", write_config(tmp_path, digits, text), "train.steps=3")
    assert run.join() == [0, 0], run.text
