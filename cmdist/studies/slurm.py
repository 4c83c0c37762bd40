"""A study on Slurm: an array for each generation of runs, and a last job for the page."""

import shlex
import subprocess
from collections.abc import Callable, Sequence

from cmdist.errors import CmdistError
from cmdist.studies.grid import Cell
from cmdist.studies.running import REPOSITORY
from cmdist.system.texts import counted

SCRIPT = "cluster/study.sbatch"
PATIENCE = 60.0  # seconds for sbatch


def generations(grid: Sequence[Cell]) -> list[list[int]]:
    """Numbers of the cells whose runs are missing: those that wait for nothing, those that wait for them, and so on; a
    run that stands at several places counts at the first.
    """
    depth: dict[str, int] = {}
    waves: list[list[int]] = []
    missing = {cell.name for cell in grid if cell.missing()}
    for number, cell in enumerate(grid):  # what is followed stands above
        if cell.name in missing and cell.name not in depth:
            depth[cell.name] = max((depth[need.name] + 1 for need in cell.needs if need.name in depth), default=0)
            waves += [[] for _ in range(depth[cell.name] + 1 - len(waves))]
            waves[depth[cell.name]].append(number)
    return waves


def submit(arguments: Sequence[str], grid: Sequence[Cell], options: str, tell: Callable[[str], object]) -> None:
    """Submit what is missing; `arguments` of pipelines/study.py make this grid. Raises CmdistError if sbatch refuses;
    what was submitted before it is named.
    """
    before, common = "", ["sbatch", "--parsable", *shlex.split(options)]
    for number, wave in enumerate(generations(grid)):
        after = [f"--dependency=afterany:{before}"] if before else []
        before = _sbatch([*common, *after, f"--array={','.join(map(str, wave))}", SCRIPT, *arguments, "--task"], before)
        tell(f"generation {number}   {counted(len(wave), 'run')}   job {before}")
    last = [f"--dependency=afterany:{before}"] if before else []
    tell(f"page           job {_sbatch([*common, *last, SCRIPT, *arguments, '--page'], before)}")


def _sbatch(command: Sequence[str], before: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE)
    except FileNotFoundError:
        raise CmdistError("there is no sbatch here: --slurm is for a machine that submits to Slurm") from None
    except subprocess.TimeoutExpired:
        raise CmdistError(f"sbatch did not answer within {PATIENCE:.0f} s") from None
    if done.returncode:
        left = f"; job {before} and those before it are submitted" if before else ""
        raise CmdistError(f"sbatch refused: {done.stderr.strip()}{left}")
    return done.stdout.strip().partition(";")[0]
