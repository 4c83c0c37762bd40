"""pipelines/train.py: what it guesses before it imports what reads a configuration."""

import os
from pathlib import Path

import psutil
import pytest

from ranks import Ranks, pipeline
from training import write_config

DATABASE = "sqlite:////tmp/a.db"


@pytest.mark.parametrize(
    ("text", "overrides", "variable", "store"),
    [
        ("tracking: {uri: none}", [], DATABASE, "none"),
        ("tracking: {uri: none}", [f"tracking.uri={DATABASE}"], None, "sqlite"),
        ("tracking: {uri: 'https://host'}", ["train.steps=1"], DATABASE, "https"),
        ("tracking: {uri: 'https://host'}", ["tracking.uri=none"], None, "none"),
        ("tracking: {uri: null}", [], "http://host:5000", "http"),
        ("train: {steps: 1}", [], "none", "none"),
        ("train: {steps: 1}", [], None, "sqlite"),
        ("tracking: {uri: [1]}", [], None, "sqlite"),
        ('tracking: {uri: "\\0abc"}', [], None, "sqlite"),
        ('tracking: {uri: "\\ud800:x"}', [], None, "sqlite"),
        (f"tracking: {{uri: {'a' * 200_000}}}", [], None, "sqlite"),
        ("train: {steps: 1}", ["tracking.uri=postgresql+psycopg2://host/a"], None, "postgresql+psycopg2"),
        ("tracking: 1", [], None, "sqlite"),
        ("[", [], None, "sqlite"),
        ("\ud800", [], None, "sqlite"),
    ],
)
def test_the_store_that_a_run_will_likely_be_told_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    overrides: list[str],
    variable: str | None,
    store: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    path = tmp_path / "small.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert pipeline("train")._likely_store(str(path), overrides) == store


def test_a_configuration_from_a_pipe_is_left_for_who_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    reading, writing = os.pipe()
    os.write(writing, b"tracking: {uri: none}")
    assert pipeline("train")._likely_store(f"/dev/fd/{reading}", []) == "sqlite"
    os.close(writing)
    assert os.read(reading, 100) == b"tracking: {uri: none}"
    os.close(reading)


def seen(record: str, arguments: list[str]) -> None:
    """pipelines/train.py; the processes of its own that it has when it begins to train go to `record`."""
    from cmdist.train.trainer import Trainer

    fit = Trainer.fit

    def looking(self: Trainer) -> bool:
        commands = [child.cmdline() for child in psutil.Process().children()]
        Path(record).write_text("\n".join(" ".join(command) for command in commands))
        return fit(self)

    Trainer.fit = looking  # type: ignore[method-assign]
    pipeline("train").main(arguments)


def test_a_run_that_is_not_tracked_keeps_no_courier_whatever_was_guessed(tmp_path: Path, digits: str) -> None:
    """A run stays where it has begun: untracked, though it is asked for now; tracked, though it is not any more."""
    config, database = write_config(tmp_path, digits), f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    for name, first, then, couriers in (
        ("untold", "tracking.uri=none", database, 0),
        ("told", database, "tracking.uri=none", 1),
    ):
        for uri, steps in ((first, 1), (then, 2)):
            arguments = [config, f"run.name={name}", f"train.steps={steps}", uri]
            ranks = Ranks(1, tmp_path / "log", seen, str(tmp_path / "seen"), arguments)
            assert ranks.join() == [0], ranks.text
            found = [line for line in (tmp_path / "seen").read_text().splitlines() if "cmdist.tracking.courier" in line]
            assert len(found) == couriers, (name, uri)
