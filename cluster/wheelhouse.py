"""Collect the wheels that training needs on a node without a network, beside a torch and a torchvision that are there.

python cluster/wheelhouse.py                      for this Python, into wheelhouse/
python cluster/wheelhouse.py --python 3.12        for another one
python cluster/wheelhouse.py --all                with MLflow, the report's figures, S3, numpy and Pillow too

Left out by default, for size: torch and torchvision with what those two bring (numpy, Pillow), MLflow (its points wait
in the run folder until a node with a network delivers them), matplotlib (pipelines/compare.py) and fontTools
(prepare_data.py font). Versions are those of constraints.txt; DeepSpeed, which comes as source, is built here without
its compiled operators.
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cmdist.errors import CmdistError, ConfigError
from cmdist.system import cli

REPOSITORY = Path(__file__).resolve().parents[1]
MOST = 60_000_000  # bytes
THERE = {"torch", "torchvision"}
BROUGHT = {"numpy", "pillow"}  # by torchvision
ELSEWHERE = {"mlflow", "matplotlib", "fonttools"}  # done on a node with a network
SOURCES = {"deepspeed"}  # have no wheels
BUILD = "setuptools"  # what `pip install --no-build-isolation -e .` needs
PATIENCE = 3600  # seconds for a command of pip


class WheelhouseError(CmdistError):
    """pip did not get a wheel, or they are too many."""


def main(arguments: Sequence[str]) -> None:
    """Collect what the command line asks for, and say how it is installed."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "wheelhouse", help="folder (default wheelhouse)")
    parser.add_argument("--python", metavar="3.N", help="version of the node's Python (default: this one's)")
    parser.add_argument("--all", action="store_true", help="all that pyproject.toml names, extra s3 included")
    options = parser.parse_args(arguments)
    version = options.python or f"{sys.version_info.major}.{sys.version_info.minor}"
    if not re.fullmatch(r"3\.\d+", version) or int(version[2:]) < 11:
        raise ConfigError(f"--python {version}: a version from 3.11 on is needed, e.g. 3.12")
    pinned = pins((REPOSITORY / "constraints.txt").read_text())
    left_out = THERE | (set() if options.all else BROUGHT | ELSEWHERE)
    names = needed(roots((REPOSITORY / "pyproject.toml").read_text(), options.all), version, left_out)
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    lines = [f"{name}=={pinned[name]}" if name in pinned else name for name in sorted(names)]
    (options.out / "requirements.txt").write_text("\n".join(lines) + "\n")
    collect(lines, version, options.out)
    size = sum(path.stat().st_size for path in options.out.glob("*.whl"))
    if size > MOST and not options.all:
        raise WheelhouseError(f"{options.out} has {size / 1e6:.1f} MB, at most {MOST / 1e6:.0f} are wanted")
    print(f"{options.out}: {len(lines)} wheels for Python {version}, {size / 1e6:.1f} MB; on the node:")
    print("  pip install --no-index --find-links wheelhouse -r wheelhouse/requirements.txt")
    print("  pip install --no-index --no-deps --no-build-isolation -e .")


def roots(pyproject: str, everything: bool) -> list[Requirement]:
    """What the project itself asks for."""
    project = tomllib.loads(pyproject)["project"]
    lines = project["dependencies"] + (project["optional-dependencies"]["s3"] if everything else [])
    return [*map(Requirement, lines), Requirement(BUILD)]


def needed(requirements: Sequence[Requirement], version: str, left_out: Set[str] = frozenset()) -> set[str]:
    """The names of those and of all that they ask for in turn, by what is installed here and the markers of a Python.

    What is left out is not followed either. Raises WheelhouseError if one of them is not installed.
    """
    surroundings: dict[str, Any] = dict(default_environment())
    surroundings |= {"python_version": version, "python_full_version": f"{version}.0"}
    names: set[str] = set()
    todo = [(requirement, "") for requirement in requirements]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({**surroundings, "extra": extra}):
            continue
        if name in left_out or name in names:
            continue
        names.add(name)
        try:
            more = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            if not requirement.marker:
                raise WheelhouseError(f"{name} is not installed here; `make install` first") from None
            more = []  # for the other Python only
        todo += [(Requirement(line), each) for line in more for each in (requirement.extras or {""})]
    return names


def pins(constraints: str) -> dict[str, str]:
    """name -> version of lines name==version."""
    pairs = (line.split("==") for line in constraints.splitlines() if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def collect(lines: Sequence[str], version: str, folder: Path) -> None:
    """Put the wheels into `folder`. Raises WheelhouseError."""
    built = [line for line in lines if line.partition("==")[0] in SOURCES]
    fetched = [line for line in lines if line not in built]
    _pip(["wheel", "--no-deps", "--wheel-dir", str(folder), *built])
    if foreign := [path.name for path in folder.glob("*.whl") if not path.name.endswith("-none-any.whl")]:
        raise WheelhouseError(f"{foreign[0]} was built for this machine only, though DS_BUILD_OPS is 0")
    target = ["--only-binary", ":all:", "--python-version", version]
    _pip(["download", "--no-deps", *target, "--dest", str(folder), *fetched])


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    environment = os.environ | {"DS_BUILD_OPS": "0"}
    try:
        done = subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise WheelhouseError(f"pip {arguments[0]} has not ended within {PATIENCE} s: is the registry slow?") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise WheelhouseError(f"pip {arguments[0]}: {(errors or [f'ended with {done.returncode}'])[-1]}")


if __name__ == "__main__":
    cli.run(main)
