import importlib.metadata
import subprocess

from cmdist import environment
from cmdist.distributed import World


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
