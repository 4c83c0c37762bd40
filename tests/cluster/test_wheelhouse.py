"""Wheels for a node without a network: which ones, for which Python, and a run from them in a network namespace."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cmdist.errors import ConfigError

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("wheelhouse", ROOT / "cluster" / "wheelhouse.py")
assert _spec and _spec.loader
wheelhouse = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(wheelhouse)

# loopback, as ranks need it, and no way out: the first address that is tried must be out of reach
NAMESPACE = """
ip link set lo up
if timeout 3 bash -c 'echo > /dev/tcp/1.1.1.1/443' 2>/dev/null; then echo "there is a way out" >&2; exit 1; fi
exec "$@"
"""


def test_training_needs_neither_torch_again_nor_mlflow() -> None:
    left_out = wheelhouse.THERE | wheelhouse.BROUGHT | wheelhouse.ELSEWHERE
    found = wheelhouse.needed(wheelhouse.roots((ROOT / "pyproject.toml").read_text(), False), "3.11", left_out)
    assert {"deepspeed", "hjson", "scipy", "pydantic-core", "webdataset", "setuptools"} <= found
    assert not found & {*left_out, "sympy", "pyarrow", "pandas", "s3fs", "botocore"}
    whole = wheelhouse.needed(wheelhouse.roots((ROOT / "pyproject.toml").read_text(), True), "3.11", wheelhouse.THERE)
    assert found | {"mlflow", "pyarrow", "matplotlib", "s3fs", "botocore", "numpy"} <= whole


def test_markers_are_those_of_the_other_python() -> None:
    asked = [Requirement('lmdb; python_version < "3.12"'), Requirement('xxhash; python_version >= "3.12"')]
    assert wheelhouse.needed(asked, "3.11") == {"lmdb"}
    assert wheelhouse.needed(asked, "3.12") == {"xxhash"}


def test_versions_are_those_of_the_constraints() -> None:
    found = wheelhouse.pins("# exact\nFlask==3.1.3\nast_serialize==0.13.1\n")
    assert found == {"flask": "3.1.3", "ast-serialize": "0.13.1"}


@pytest.mark.parametrize("version", ["3", "2.7", "3.10", "3.12.1", "python3"])
def test_another_version_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a version from 3.11 on is needed, e.g. 3.12"):
        wheelhouse.main(["--python", version, "--out", str(tmp_path / "wheels")])
    assert not (tmp_path / "wheels").exists()


@pytest.mark.slow  # 56 MB are fetched, and torch is copied
@pytest.mark.timeout(1500)
def test_a_node_without_a_network_installs_and_trains(tmp_path: Path) -> None:
    wheelhouse.main(["--out", str(tmp_path / "wheelhouse")])
    assert sum(path.stat().st_size for path in (tmp_path / "wheelhouse").iterdir()) <= 60_000_000
    venv.create(tmp_path / "node", with_pip=True, symlinks=True)
    place = next((tmp_path / "node" / "lib").glob("python3*/site-packages"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in wheelhouse.needed([Requirement("torch"), Requirement("torchvision")], version):
        copy_package(name, place)
    checkout = tmp_path / "checkout"
    for name in ("cmdist", "pipelines", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    python = str(tmp_path / "node" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-index"]
    wheels = str(tmp_path / "wheelhouse")
    inside(checkout, [*pip, "--find-links", wheels, "-r", f"{wheels}/requirements.txt"])
    inside(checkout, [*pip, "--no-deps", "--no-build-isolation", "-e", "."])
    out = str(tmp_path / "out")
    gpu = ["gpu", "--device", "cpu", "--minutes", "14", "--only", "machine", "digits", "--out", out]
    said = inside(checkout, [python, "pipelines/benchmark.py", *gpu])
    assert '{"done": 2}' in said
    assert "mlflow" not in (Path(out) / "parts" / "machine.json").read_text()


def copy_package(name: str, place: Path) -> None:
    """An installed distribution, linked into another environment where that is possible."""
    for file in importlib.metadata.distribution(name).files or []:
        source, goal = Path(file.locate()).resolve(), place / file
        if ".." not in file.parts and source.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, goal)
            except OSError:
                shutil.copy(source, goal)


def inside(checkout: Path, command: list[str]) -> str:
    """What a command says in a network namespace of its own, and without this machine's settings of pip."""
    unshare = ["unshare", "--map-root-user", "--net", "bash", "-euc", NAMESPACE, "bash", *command]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        unshare, cwd=checkout, env=kept | {"PIP_CONFIG_FILE": os.devnull}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
