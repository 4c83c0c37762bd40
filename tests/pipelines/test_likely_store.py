"""pipelines/train.py: what it guesses before it imports what reads a configuration."""

import os
from pathlib import Path

import pytest

from ranks import pipeline

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
        ("tracking: {uri: [1]}", [], None, "[1]"),
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
