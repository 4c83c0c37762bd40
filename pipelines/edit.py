"""Edit pictures with a consistency model, without training for it (paper, Algorithm 4 and appendix D).

python pipelines/edit.py inpaint RUN pictures/ --mask centre --out edited
python pipelines/edit.py colourise RUN grey.png --seeds 0 1 2 --out edited
python pipelines/edit.py superresolve RUN small.png --patch 8 --out edited       (small ones are enlarged first)
python pipelines/edit.py stroke RUN strokes.png --times 5.38 2.24 --out edited
python pipelines/edit.py denoise RUN noisy.png --sigma 0.5 --out edited
python pipelines/edit.py inpaint configs/emoji/cd.yaml --weights configs/emoji/weights/cd.safetensors ...

OUT gets a picture for each input and seed, and sheet.png with all of them. A denoiser edits by its ODE, for comparison.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from cmdist import build, guiding, quality
from cmdist.errors import ConfigError
from cmdist.evaluation import edits, generation, pictures
from cmdist.evaluation.edits import Editor, Request
from cmdist.system import cli
from cmdist.system.distributed import World


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=edits.TASKS)
    parser.add_argument("run", help="a run folder or a checkpoint; with --weights a configuration file")
    parser.add_argument("images", nargs="+", type=Path, help="pictures, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--weights", metavar="FILE", help="a file of weights to edit with instead of a run")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="which average; default: the first of train.ema")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="an edit for each (default 0 1 2)")
    parser.add_argument(
        "--times", nargs="+", type=float, help="falling noise levels; default: the paper's (40 levels, stroke: 2)"
    )
    parser.add_argument("--label", type=int, help="the class, of a model that has classes")
    cli.add_guidance(parser)
    parser.add_argument("--mask", help=f"{', '.join(edits.MASKS)}, random:0.5, or a picture whose white is generated")
    parser.add_argument("--patch", type=int, help="superresolve: pixels a side with a known mean (4)")
    parser.add_argument("--sigma", type=float, help="denoise: the noise level of the pictures (0.5)")
    parser.add_argument("--add-noise", action="store_true", help="denoise: add noise of that level first")
    parser.add_argument("--fit", action="store_true", help="crop and resize pictures of other sizes")
    options = parser.parse_intermixed_args(arguments)
    for task, names in {"superresolve": ["patch"], "denoise": ["sigma", "add_noise"]}.items():
        if options.task != task:
            cli.unused(options, names, f"for {options.task}, only for {task}")
    if options.weights and options.ema is not None:
        raise ConfigError("--weights holds one set of weights, so there is no --ema")
    guidance = guiding.guidance_of(options.guidance, options.guidance_interval)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quality.set_up_process()
    model = build.open_model(options.run, options.ema, options.weights)
    config, shape = model.config, quality.shape(model.config)
    noise = config.noise
    guiding.check(config, guidance, options.guide)
    guide = guiding.guide_of(config, options.guide, World(device=device))
    consistency = quality.to_sigma_min(config, guiding.guided(config, model.denoiser(device), guidance, guide))
    editor = Editor(consistency, shape, noise.sigma_min, noise.sigma_max, noise.rho, device)
    mask = edits.mask_of(options.mask, shape[1]) if options.mask is not None else None
    request = Request(
        options.task,
        options.seeds,
        options.times,
        options.label,
        mask,
        Request.patch if options.patch is None else options.patch,
        Request.sigma if options.sigma is None else options.sigma,
        options.add_noise,
    )
    edits.check(editor, request, config.data.classes)
    inputs = edits.read(options.images, shape, enlarge=options.task == "superresolve", fit=options.fit)
    write(
        options.out, options.task, options.seeds, list(tqdm(edits.edited(editor, request, inputs), total=len(inputs)))
    )


def write(out: Path, task: str, seeds: Sequence[int], results: Sequence[edits.Result]) -> None:
    """The pictures, the sheet, and a line for each input."""
    out.mkdir(parents=True, exist_ok=True)
    for result in results:
        for seed, image in zip(seeds, generation.to_uint8(result.edits), strict=True):
            pictures.alone(image).save(out / f"{result.name}-{task}-{seed}.png")
        kept = "" if task in ("stroke", "denoise") else f"; known part kept to {result.errors.max():.1e}"
        print(f"{result.name}: seeds {', '.join(map(str, seeds))}{kept}")
    images, titles = edits.sheet(results, seeds)
    sheet = pictures.side_by_side([(task, images)], len(titles), titles, scale=max(1, 96 // images.shape[3]))
    sheet.save(out / "sheet.png")
    print(out / "sheet.png")


if __name__ == "__main__":
    cli.run(main)
