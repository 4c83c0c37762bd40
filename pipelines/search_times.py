"""Search the noise levels of multistep sampling for a consistency model, by a Frechet distance (paper, section 3).

python pipelines/search_times.py runs/digits/cd                 two steps, the data set's own distance
torchrun ... pipelines/search_times.py runs/lsun/cd --steps 3 --metric fid --inception FILE --few 10000 --many 50000
sbatch --array=1-5 --wrap 'srun .venv/bin/python pipelines/search_times.py RUN'          five jobs share the probes

Times are added one at a time. A ternary search on the levels of a Karras grid brackets each with few images, every
level of the last bracket is scored with many, the best of those is kept, and the times found are scored once more on
fresh seeds. Every probe is a record in RUN/evaluations: a killed search goes on, on any number of ranks, and nothing is
made twice. `evaluate.py RUN --times search` measures with the result, and its protocol says on what it was searched.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial

from cmdist import build, models, quality, tuning
from cmdist.evaluation import extractors
from cmdist.quality import Request
from cmdist.report import charts
from cmdist.system import cli, distributed, jobs, storage
from cmdist.tuning import Search

tell = partial(print, flush=True)


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or the folder of one of its checkpoints")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the newest")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="which average; default: the first of train.ema")
    parser.add_argument("--steps", type=int, default=2, help="evaluations of the network (default %(default)s)")
    parser.add_argument("--metric", help="the lower the better; default: fd if the data set has an extractor, else fid")
    parser.add_argument("--levels", type=int, default=40, help="of the Karras grid (default %(default)s)")
    parser.add_argument("--few", type=int, default=1000, help="images of a probe that brackets (default %(default)s)")
    parser.add_argument("--many", type=int, default=5000, help="images of one that decides (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1024, help="images on the device at once (default %(default)s)")
    parser.add_argument("--inception", metavar="FILE", help="Inception's TorchScript weights")
    parser.add_argument("--dinov2", metavar="FILE", help="DINOv2 as TorchScript")
    parser.add_argument("--trust", nargs="+", default=[], metavar="CHECKSUM", help="of a TorchScript file that may run")
    parser.add_argument("--reference", nargs="+", default=[], metavar="SPACE=FILE", help="statistics of real images")
    parser.add_argument("--hang-minutes", type=float, default=120.0, help="for a probe's image (default %(default)s)")
    parser.add_argument("--part", metavar="K/N", help="of N jobs that share the probes; default: a Slurm array's task")
    options = parser.parse_args(arguments)
    part = jobs.part_of(options.part, os.environ) or (1, 1)
    url = storage.absolute(options.run)

    def request_of(config: models.Config) -> tuple[Search, Request]:
        metric = options.metric or extractors.usual(build.dataset(config))[0]
        search = Search(metric, options.steps, options.levels, options.few, options.many)
        tuning.check(search, config)
        files = {"inception": options.inception, "dinov2": options.dinov2, "references": options.reference}
        files |= {"trusted": options.trust}
        return search, Request(options.few, batch=options.batch, metrics=[metric], steps=["1"], **files)

    def look() -> None:
        run = models.open_run(url, options.checkpoint)
        with cli.before_start():
            quality.check(run.config, request_of(run.config)[1], run.step)

    with quality.started(options.hang_minutes, look) as world:
        newest = models.open_run(url, options.checkpoint).step if world.first else 0
        run = models.open_run(url, distributed.gather(newest, world.control)[0])
        search, request = request_of(run.config)
        result = tuning.search_times(run, search, request, world, options.ema, tell, part)
        if world.first:
            stem = f"{run.checkpoint.url.rpartition('/checkpoints/')[0]}/evaluations/times-{search.steps}"
            storage.write(f"{stem}.png", charts.search(result["probes"], search.metric))
            levels = " ".join(f"{level:.6g}" for level in result["times"])
            tell(f"--times {levels}   {search.metric} {result['fresh']:.5g} on fresh seeds; the curve is {stem}.png")


if __name__ == "__main__":
    cli.run(main)
