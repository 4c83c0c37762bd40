import importlib.metadata
import json
import subprocess
from pathlib import Path

from cmdist import config as configuration
from cmdist.system.distributed import World
from cmdist.tracking import environment
from cmdist.tracking.journal import Journal
from cmdist.tracking.mlflow import Tracker, spool_folder
from cmdist.train.telling import start_tracker
from ranks import REPOSITORY


def test_the_commit_is_git_s(tmp_path, monkeypatch):
    git = ["git", "-C", str(environment.Path(environment.__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert environment.git_commit().removesuffix("-dirty") == head
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.git_commit() == ""


def test_versions_are_those_that_are_installed():
    found = environment.describe(World(size=3))
    assert found["packages"]["torch"] == importlib.metadata.version("torch") and found["ranks"] == 3
    assert found["device"].startswith("CPU") and found["CUDA"] is None


def test_a_run_is_tracked_with_its_commit_configuration_and_environment(tmp_path, monkeypatch):
    config = configuration.load(REPOSITORY / "configs/digits/ct.yaml", [f"run.root={tmp_path}"])
    record = {"id": "key", "tracking_uri": "sqlite:///nowhere", "experiment": "tests"}
    monkeypatch.setattr(Tracker, "_watch", lambda self: None)  # no courier
    start_tracker(config, World(size=2), str(tmp_path / "ct"), record, attempt=3)
    start, *artifacts = [r for r, _ in Journal(spool_folder(str(tmp_path / "ct"))).read()]
    assert start["attempt"] == 3 and start["tags"]["mlflow.source.git.commit"] == environment.git_commit()
    assert start["params"]["train.steps"] == "1250" and start["tags"]["cmdist.world_size"] == "2"
    contents = {Path(r["path"]).name: Path(r["path"]).read_text() for r in artifacts}
    assert json.loads(contents["environment-000003.json"])["packages"].keys() >= {"torch", "deepspeed", "mlflow"}
    assert configuration.parse(contents["config-000003.yaml"]) == config
