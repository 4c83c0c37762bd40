"""Make a picture of samples: a block for each run and number of steps, column c of class c,
the same seeds at the same places.

python pipelines/sample.py runs/digits/edm runs/digits/cd runs/digits/ct --out samples.png
python pipelines/sample.py RUN --seeds 3 14 15 --labels 0 9 --out samples.png
python pipelines/sample.py RUN --interpolate 3 14 --out between.png
python pipelines/sample.py CONFIG.yaml --weights cd_imagenet64_lpips.pt --out samples.png     # a released file, as
CONFIG describes it
"""

import argparse
from collections.abc import Sequence

import torch

from cmdist import build, guiding, quality
from cmdist.errors import ConfigError
from cmdist.evaluation import generation, pictures
from cmdist.evaluation.generation import Task
from cmdist.system import cli, storage
from cmdist.system.distributed import World


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="run",
        help="run folders, or folders of checkpoints; with --weights one configuration file",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="a file of weights (.pt, .pth, .safetensors) to sample instead of a run"
    )
    parser.add_argument(
        "--qkv-order", choices=("legacy", "new"), help="of a guided-diffusion file: its order of attention weights"
    )
    parser.add_argument("--ema", type=float, metavar="DECAY", help="which average; default: the first of train.ema")
    parser.add_argument("--steps", nargs="+", metavar="N|heun", help="default: 1 2, for a denoising run heun")
    parser.add_argument(
        "--times", nargs="+", type=float, help="noise levels of the multistep sampler; default: sampling.times"
    )
    cli.add_guidance(parser)
    parser.add_argument("--rows", type=int, help="of each grid (default 4)")
    parser.add_argument("--seed", type=int, help="the first image's seed (default 0)")
    parser.add_argument("--seeds", nargs="+", type=int, help="these images alone, in a row")
    parser.add_argument("--labels", nargs="+", type=int, help="a row for each of these classes, of the same seeds")
    parser.add_argument(
        "--interpolate", nargs=2, type=int, metavar="SEED", help="a row from the noise of one seed to that of another"
    )
    parser.add_argument("--out", required=True, help="a file or URL that ends in .png")
    options = parser.parse_args(arguments)
    if options.seeds or options.interpolate:
        cli.unused(options, ["rows", "seed"], "with --seeds or --interpolate")
    if options.labels:
        cli.unused(options, ["rows"], "with --labels, each of which has one row")
    if options.steps and set(options.steps) <= {"1", "heun"}:
        cli.unused(options, ["times"], f"with --steps {' '.join(options.steps)}")
    options.rows, options.seed = (4 if options.rows is None else options.rows), options.seed or 0
    if not 1 <= options.rows <= 1000 or not 0 <= options.seed < 2**62 or not options.out.endswith(".png"):
        raise ConfigError("--rows must be 1 to 1000, --seed 0 or more, below 2^62, and --out must end in .png")
    if options.seeds and (options.interpolate or min(options.seeds) < 0):
        raise ConfigError("--seeds takes numbers of 0 or more, and goes without --interpolate")
    if options.interpolate and min(options.interpolate) < 0:
        raise ConfigError("--interpolate takes two seeds of 0 or more")
    if options.weights and (len(options.runs) > 1 or options.ema is not None):
        raise ConfigError(
            "with --weights one configuration file is given, and no --ema: the file holds one set of weights"
        )
    guidance = guiding.guidance_of(options.guidance, options.guidance_interval)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quality.set_up_process()  # the same seed gives the same bits as in evaluation
    blocks, layouts = [], set()
    for url in options.runs:
        model = build.open_model(url, options.ema, options.weights, options.qkv_order)
        config, classes, shape = model.config, model.config.data.classes, quality.shape(model.config)
        guiding.check(config, guidance, options.guide)
        guide = guiding.guide_of(config, options.guide, World(device=device))
        samplers = quality.samplers(
            config, model.denoiser(device), options.steps, options.times, model.step, guidance, guide
        )
        if options.seeds or options.labels or options.interpolate:
            row = generation.Row(options.seeds or [options.seed + i for i in range(10)], options.interpolate)
            columns = len(row)
            layouts.add((columns, shape[1]))
            labels = generation.labels_of(options.labels, classes)
            for sampler in samplers:
                images = torch.cat([row.images(sampler, shape, label, classes, device) for label in labels])
                blocks.append((f"{model.title}: {sampler.title}", images))
            continue
        columns = pictures.columns(classes)
        layouts.add((columns, shape[1]))
        first = -(-options.seed // columns) * columns  # so that the first column is class 0
        for sampler in samplers:
            task = Task(range(first, first + options.rows * columns), shape, classes, sampler.draws)
            blocks.append((f"{model.title}: {sampler.title}", generation.images(task, sampler.sample, device)))
    if len(layouts) > 1:
        raise ConfigError("the runs have other numbers of classes or image sizes; one picture needs the same for all")
    storage.write(
        options.out,
        pictures.png(
            pictures.side_by_side(blocks, columns, [str(c) for c in range(columns)] if classes == columns else ())
        ),
    )
    print(options.out)


if __name__ == "__main__":
    cli.run(main)
