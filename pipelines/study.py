"""A study: a grid of runs with seeds, trained, measured and told of by one command, which goes on where it was stopped.

python pipelines/study.py configs/studies/figure4.yaml                what is missing, and the page
python pipelines/study.py configs/studies/figure4.yaml --dry-run      the grid, what it costs and what is there
python pipelines/study.py configs/studies/figure4.yaml --page         the page again, from what is there
python pipelines/study.py configs/studies/*.yaml --claims             one page of all claims
python pipelines/study.py configs/studies/figure4.yaml --slurm        one array task for each run

A run that is there already, also as another study made it, is not made again. Relative paths in a study file are of
the repository, wherever the command is given.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cmdist.errors import CmdistError, ConfigError
from cmdist.studies import claims, grid, page, parent, running, slurm, web
from cmdist.system import cli, storage
from cmdist.tracking.mlflow import TrackingError

tell = partial(print, flush=True)


def name_of(file: str) -> str:
    """Of a study: its file's."""
    return file.rpartition("/")[2].partition(".")[0]


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", help="a study file, e.g. configs/studies/figure4.yaml")
    parser.add_argument(
        "--root", default="runs/studies", help="of the data and runs of all studies (default %(default)s)"
    )
    parser.add_argument("--out", default="docs/studies", help="where the page and its tables go (default %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="instead of the study's")
    parser.add_argument("--width", type=int, help="runs side by side; default: one for each GPU, or for each CPU core")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the grid and its cost, make nothing")
    what.add_argument("--page", action="store_true", help="tables, figure and page from what is there")
    what.add_argument("--claims", action="store_true", help="one page of the claims of several studies, made before")
    what.add_argument("--slurm", action="store_true", help="submit an array for each generation of runs")
    what.add_argument("--task", type=int, metavar="N", help="the run of number N alone, as an array's task does")
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="--sbatch='--partition=gpu', with --slurm")
    options = parser.parse_args(arguments)
    if options.width is not None and not 1 <= options.width <= 1024:
        raise ConfigError(f"--width must be 1 to 1024, not {options.width}")
    if options.sbatch and not options.slurm:
        raise ConfigError("--sbatch is of --slurm")
    options.study = [str(Path(file).absolute()) for file in options.study]
    options.root, options.out = storage.absolute(options.root), storage.absolute(options.out)
    os.chdir(running.REPOSITORY)  # where its runs are made, also those of an array
    if options.claims:
        studies = [(name_of(file), grid.load(file)) for file in options.study]
        return tell(f"page: {claims.page(studies, options.out)}")
    if len(options.study) > 1:
        raise ConfigError("one study file is taken; several with --claims only")
    (options.study,) = options.study
    study, name = grid.load(options.study, options.seeds), name_of(options.study)
    if options.dry_run:
        return running.print_plan(study, options.root, tell)
    if not options.page:
        running.prepare(study, options.root, tell)
    cells = grid.cells(study, options.root)
    if options.task is not None:
        if not 0 <= options.task < len(cells):
            raise ConfigError(f"--task {options.task}: the study has the runs 0 ... {len(cells) - 1}")
        with running.terminated_as_interrupted():
            return running.make(cells[options.task], options.root, tell)
    if options.slurm:
        seeds = ["--seeds", *map(str, options.seeds)] if options.seeds else []
        same = [options.study, "--root", options.root, "--out", options.out, *seeds]
        return slurm.submit(same, cells, options.sbatch, tell)
    if options.page and (missing := [cell.title for cell in cells if cell.missing()]):
        tell(f"{len(missing)} of {len(cells)} runs are missing, first {missing[0]}; without --page they are made")
    failed = [] if options.page else running.make_all(cells, options.root, options.width, tell)
    if failed:
        raise CmdistError(f"{len(failed)} of {len(cells)} runs failed, first {failed[0]}; the same command tries again")
    folder, written = storage.join(options.out, name), page.write(study, name, cells, options.out)
    tell(f"page: {written}")
    report = web.write(study, name, cells, folder, storage.join(options.root, "reports"))
    tell(f"report: {report}")
    pages = [written, report, *(storage.join(folder, f"{table}.csv") for table in ("figures", "medians"))]
    try:
        parent.log(study, name, cells, folder, pages)
    except TrackingError as error:
        cli.say(f"not in MLflow yet: {error}; the same command sends it later")
    tell(f"runs: {storage.join(options.root, 'runs')}")


if __name__ == "__main__":
    cli.run(main)
