"""Damage what commands read, one case after another, and look whether each keeps the contract: `make fuzz`.

python tests/fuzz/run.py [--minutes 10] [--seed N] [--kind KIND] [--case SEED]

A case follows from its seed alone, which is printed with what was wrong. The contract: an exit code that is
documented, one sentence for a failure, nothing unforeseen, no end later than LIMIT seconds, no file outside of the
folders that were given, and a result that is what it is without the damage, where it says so.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "fuzz"), str(REPOSITORY)]

import base
from cases import CASES, Command

from ranks import Ranks, pipeline

LIMIT = 30.0  # seconds of a command
CODES = (0, 1, 2, 3, 4, 75)
UNFORESEEN = re.compile(r"run again with --debug|Traceback \(most recent call last\)|Fatal Python error|core dumped")


def run(folder: str, name: str, arguments: list[str]) -> None:
    """The command in a process of its own, whose working directory and home are empty folders."""
    for place in ("cwd", "home", "tmp"):
        os.makedirs(f"{folder}/{place}", exist_ok=True)
    os.environ.update(HOME=f"{folder}/home", TMPDIR=f"{folder}/tmp", MLFLOW_TRACKING_URI="")
    del os.environ["MLFLOW_TRACKING_URI"]
    tempfile.tempdir = None
    os.chdir(f"{folder}/cwd")
    from cmdist.system import cli

    sys.argv = [f"{name}.py", *arguments]
    if name == "launch":
        sys.path.append(str(REPOSITORY / "cluster"))
        import launch

        cli.run(launch.main)
    else:
        cli.run(pipeline(name).main)


def problems(folder: Path, code: int | None, said: str, command: Command, usual: str | None) -> list[str]:
    """What breaks the contract."""
    found = []
    if code is None or code < 0:
        found.append(f"it was still running after {LIMIT:g} s, or was killed ({code})")
    elif code not in CODES:
        found.append(f"exit code {code}")
    errors = [line for line in said.splitlines() if line.startswith(("error: ", "preflight: "))]
    usage = re.search(r"^(usage|prepare_data.*): .*|: error: ", said, re.MULTILINE)
    if code and not errors and not usage:
        found.append("it failed without a sentence")
    if code and len([line for line in errors if line.startswith("error: ")]) > 1:
        found.append("more than one sentence")
    if match := UNFORESEEN.search(said):
        found.append(f"unforeseen: {match[0]}")
    strange = [path for place in ("cwd", "home") for path in (folder / place).rglob("*") if path.is_file()]
    strange = [path for path in strange if ".cache" not in path.parts and ".config" not in path.parts]
    given = {part for each in command.arguments for part in Path(each.rpartition("=")[2]).parts[:1]}
    strange = [path for path in strange if path.relative_to(folder).parts[1] not in given]
    if strange:
        found.append(f"it left {strange[0].relative_to(folder)}")
    if command.same and code == 0 and usual is not None and outcome(folder, command) != usual:
        found.append("another result")
    return found


def outcome(folder: Path, command: Command) -> str | None:
    """A hash of what a command has made, if it has."""
    made = folder / "ROOT" / "samples.png"
    return hashlib.sha256(made.read_bytes()).hexdigest() if made.exists() else None


def one(
    folder: Path, kind: str, seed: int, usual: str | None, root: Path
) -> tuple[list[str], Command, str, int | None]:
    """A case: what was wrong, the command, what it said, and its exit code."""
    draw = random.Random(seed)
    folder.mkdir()
    command = CASES[kind](draw, Path(shutil.copytree(root, folder / "ROOT")))
    ranks = Ranks(1, folder / "log", run, str(folder), command.name, command.arguments)
    deadline = time.monotonic() + LIMIT
    while ranks.processes[0].exitcode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    code = ranks.processes[0].exitcode
    ranks.kill()
    said = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
    return problems(folder, code, said, command, usual), command, said, code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the first case")
    parser.add_argument("--kind", choices=sorted(CASES), action="append")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    parser.add_argument("--case", type=int, help="only this one, of one --kind")
    options = parser.parse_args()
    kinds = options.kind or sorted(CASES)
    counts: Counter[str] = Counter()
    codes: Counter[int | None] = Counter()
    with tempfile.TemporaryDirectory(prefix="cmdist-fuzz-") as name:
        folder, root = Path(name) / "case", Path(name) / "kept"
        place = folder / "ROOT"
        base.make(place)
        arguments = [f"{place}/runs/small", "--out", f"{place}/samples.png", "--rows", "1", "--steps", "1"]
        base.done(folder / "log", "sample", arguments)
        usual = outcome(folder, Command("sample", []))
        (place / "samples.png").unlink()
        shutil.move(place, root)
        shutil.rmtree(folder)
        deadline, seed = time.monotonic() + 60 * options.minutes, options.seed if options.case is None else options.case
        print(f"seeds from {seed} on, {options.minutes:g} minutes", flush=True)
        while True:
            kind = kinds[seed % len(kinds)]
            wrong, command, said, code = one(folder, kind, seed, usual, root)
            shutil.rmtree(folder)
            counts["cases"] += 1
            counts[kind] += 1
            counts["wrong"] += bool(wrong)
            codes[code] += 1
            if options.verbose:
                last = (said.strip().splitlines() or [""])[-1]
                print(f"{seed:>6} {kind:14} {command.name:12} {code} {last[:300]}", flush=True)
            if wrong or options.case is not None:
                print(f"\n{kind}, seed {seed}: {'; '.join(wrong) or 'as it should be'}")
                print(f"  {command.name} {' '.join(command.arguments)}\n  {said[-1500:]}", flush=True)
            seed += 1
            if options.case is not None or time.monotonic() > deadline:
                break
    print(f"{counts['cases']} cases, {counts['wrong']} wrong: {dict(counts)}; exit codes {dict(codes)}")
    sys.exit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()
