"""A new objective and a new network are a file and a row each: they train, resume, evaluate and are planned."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from cmdist import build, config, models
from cmdist.checkpoints import search
from cmdist.errors import ConfigError
from cmdist.plan import plan
from cmdist.tracking.journal import Journal
from ranks import Ranks, pipeline
from runs import call, make_data
from training import files, vectors, write_config

TOY = ["objective.kind=toy", "run.name=toy", "train.checkpoint_every=1", "tracking.experiment=toys"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def path(folder: Path) -> str:
    data = make_data(folder / "data")
    text = Path(write_config(folder, str(data))).read_text()
    (network,) = (line for line in text.splitlines() if line.startswith("network:"))
    text = text.replace(network, "network: {kind: toy}")
    (folder / "toy.yaml").write_text(text.replace("log_every: 5", "log_every: 1").replace("tracking: {uri: none}", ""))
    return str(folder / "toy.yaml")


def trained(folder: Path, path: str, *overrides: str) -> None:
    run = Ranks(1, folder / "log", toy.train, [path, *overrides])
    assert run.join() == [0], run.text


@pytest.fixture(scope="module")
def whole(folder: Path, path: str) -> Path:
    """A denoiser of the toy network, and the toy objective with it as teacher and helper: six steps at once."""
    trained(folder, path, "run.name=edm", "train.steps=2", "tracking.uri=none")
    places = [f"objective.{key}={folder}/runs/edm" for key in ("teacher", "helper")]
    trained(folder, path, *TOY, *places, "train.steps=6")
    return folder / "runs/toy"


def overrides(folder: Path) -> list[str]:
    return [*TOY, *(f"objective.{key}={folder}/runs/edm" for key in ("teacher", "helper"))]


def test_it_goes_on_bit_for_bit_from_its_boundary_and_from_behind_it(folder: Path, path: str, whole: Path) -> None:
    """Before step 3 moments are zeroed and the teacher takes the student's weights: once, wherever one comes back."""
    for steps in (3, 4, 6):
        trained(folder, path, *overrides(folder), "run.name=parts", f"train.steps={steps}", "tracking.uri=none")
    assert files(folder / "runs/parts", 6) == files(whole, 6)
    states = {step: vectors(whole, step) for step in (2, 3, 4, 6)}
    assert set(states[6]) >= {"master", "exp_avg", "exp_avg_sq", "teacher"}
    assert torch.equal(states[4]["teacher"], states[3]["master"]) and torch.equal(
        states[6]["teacher"], states[4]["teacher"]
    )
    assert not torch.equal(states[2]["teacher"], states[3]["master"])
    optimizer_steps = {step: search.open_checkpoint(str(whole), step).state["optimizer_step"] for step in (3, 4, 6)}
    assert optimizer_steps == {3: 3, 4: 1, 6: 3}


def test_what_is_told_is_logged_by_its_name_and_by_noise_level(whole: Path) -> None:
    records = [record for record, _ in Journal(whole / "tracking").read() if record["kind"] == "metrics"]
    points = {record["step"]: record["values"] for record in records}
    assert {step: values["stage"] for step, values in points.items() if "stage" in values}[6] == 1.0
    last = points[6]
    assert last["error"] > 0 and math.isfinite(last["head"]) and "mu" not in last
    assert any(name.startswith("head_sigma_") for name in last)


def test_the_network_alone_is_sampled_and_measured(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toy.install(monkeypatch)
    run = models.open_run(str(whole))
    names = set(run.checkpoint.layout.names)
    assert "extra.slope" in names and "extra.slope" not in models.ema_weights(run)
    assert "net.inner.weight" not in names and "inner.weight" in names
    call(pipeline("evaluate").main, whole, "--n", 128, "--metrics", "fd")
    assert len(list((whole / "evaluations").glob("*.json"))) == 2
    pipeline("sample").main([str(whole), "--rows", "1", "--out", str(tmp_path / "samples.png")])
    assert (tmp_path / "samples.png").exists()


def test_it_is_planned(folder: Path, path: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install(monkeypatch)
    made = config.load(path, [*overrides(folder), "train.steps=6"])
    found = plan(made, 1)
    assert found.parameters == sum(p.numel() for p in build.network(made).parameters())
    assert found.memory["teacher"] > 0 and found.flops > 3 * found.forward_flops


def test_a_key_of_another_kind_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install(monkeypatch)
    base: list[Any] = ["objective.kind=toy", "objective.teacher=a", "objective.helper=b"]
    config.load(path, base)
    with pytest.raises(ConfigError, match="'objective.sigma_mean'; allowed for kind toy: kind, teacher, helper"):
        config.load(path, [*base, "objective.sigma_mean=0"])
    with pytest.raises(ConfigError, match="unknown key 'network.head_channels'; allowed for kind toy: kind, width"):
        config.load(path, [*base, "network.head_channels=8"])
