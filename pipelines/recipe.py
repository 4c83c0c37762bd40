"""Write a configuration for images of your own: network, batches, steps and averages, with reasons.

python pipelines/recipe.py runs/mine/data --gpus 8 --memory 80 --hours 24 > mine.yaml
python pipelines/recipe.py runs/mine/data --gpus 1 --hours 12 --teacher weights/edm-cifar10.safetensors > mine.yaml

A teacher and its student share the file and the hours; the commands that train both come on stderr and stand at the
top of the file. It counts what --plan counts; nothing is trained, and nothing of the images but their index is read.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence

import safetensors

from cmdist import config as configuration
from cmdist import gpus, models, recipe
from cmdist.data.images import open_dataset
from cmdist.errors import CheckpointError, ConfigError
from cmdist.nets import released
from cmdist.system import cli, storage

SCRIPT = "cluster/train_imagenet64.sbatch"


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder made by prepare_data.py")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="of all nodes; CPU cores count as GPUs")
    parser.add_argument("--hours", type=float, required=True, help="for teacher and student together")
    parser.add_argument("--memory", type=float, metavar="GB", help="of each GPU, if it is another than its name says")
    parser.add_argument("--node-gpus", type=int, default=8, metavar="N", help="of a node (default %(default)s)")
    parser.add_argument("--teacher", metavar="RUN|FILE", help="one that is there: a run folder, or convert.py's file")
    parser.add_argument("--gpu", default="a100", metavar="NAME", help=f"{', '.join(gpus.GPUS)} (default %(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="of another GPU")
    parser.add_argument(
        "--mfu", type=float, help=f"the part of the peak that is reached (measured, else {gpus.ASSUMED})"
    )
    parser.add_argument("--name", default="mine", help="of the file and of the runs' folder (default %(default)s)")
    options = parser.parse_args(arguments)
    with cli.before_start():
        means = _means(options)
        data = open_dataset(options.data)
        classes = len(data.classes) if data.labelled and len(data.classes) > 1 else 0
        images = recipe.Images(options.data, len(data), data.image_size, data.channels, classes)
        made = recipe.choose(images, means, options.name, _teacher(options.teacher) if options.teacher else None)
    lines = _commands(options, made)
    head = [f"# {shlex.join(['python', 'pipelines/recipe.py', *arguments])}", *(f"#   {line}" for line in lines)]
    print("\n".join(head))
    print(made.text, end="")
    sys.stdout.flush()
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(lines), file=sys.stderr)


def _means(options: argparse.Namespace) -> recipe.Means:
    """Raises ConfigError."""
    gpu = gpus.gpu(options.gpu)
    memory = gpu.memory if options.memory is None else options.memory
    mfu = (gpu.utilisation or gpus.ASSUMED) if options.mfu is None else options.mfu
    peaks = (gpu.tf32, gpu.half) if options.peak_tflops is None else (options.peak_tflops, 0.0)
    for name, value, most in (
        ("gpus", options.gpus, 2**20),
        ("node-gpus", options.node_gpus, 1024),
        ("hours", options.hours, math.inf),
        ("memory", memory, math.inf),
        ("peak-tflops", peaks[0], math.inf),
        ("mfu", mfu, 1),
    ):
        if not 0 < value <= most or math.isinf(value):
            upper = "" if math.isinf(most) else f" and up to {most}"
            raise ConfigError(f"--{name} {value:g}: a number above 0{upper} is needed")
    if options.gpus > options.node_gpus and options.gpus % options.node_gpus:
        raise ConfigError(f"--gpus {options.gpus} must be whole nodes of --node-gpus {options.node_gpus}, or one node")
    return recipe.Means(options.gpus, memory, peaks, mfu, options.hours)


def _teacher(url: str) -> recipe.Teacher:
    """What a run or a file says of itself. Raises CheckpointError, ConfigError."""
    if not released.is_file(url):
        config = models.open_run(url).config
        if config.kind.makes != "denoiser":
            raise ConfigError(
                f"--teacher {url} is no denoiser, its objective is {config.kind_name}; a teacher must be one"
            )
        tree = configuration.written(config)
        return recipe.Teacher(url, {key: tree[key] for key in ("network", "data", "noise")})
    local = storage.local_path(url)
    if local is None or not local.name.endswith(".safetensors"):
        raise ConfigError(f"--teacher {url}: a run folder or a local file of pipelines/convert.py is needed")
    try:
        with safetensors.safe_open(local, "pt") as file:
            keys = json.loads((file.metadata() or {})["keys"])
        width, _ = keys["network"]["model_channels"], keys["data"].get("image_size")
        if type(width) is not int or width < 1:
            raise ValueError("no width")
    except (OSError, safetensors.SafetensorError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"--teacher {url} does not say what network it holds; a file of pipelines/convert.py does"
        ) from error
    return recipe.Teacher(url, keys)


def _commands(options: argparse.Namespace, made: recipe.Recipe) -> list[str]:
    """Two on Slurm, and the same two without."""
    each = min(options.gpus, options.node_gpus)
    size = f"--nodes={options.gpus // each} --ntasks-per-node={each} --gpus-per-node={each}"
    file = f"{options.name}.yaml"
    teacher = shlex.join([file, *made.teacher])
    deepspeed = f"deepspeed --num_gpus {each} pipelines/train.py"
    if not made.teacher:
        lines = [f"sbatch {size} {SCRIPT} {file}"]
        return [*lines, *([f"{deepspeed} {file}"] if options.gpus == each else [])]
    lines = [
        f"teacher=$(sbatch --parsable {size} {SCRIPT} {teacher})",
        f"sbatch --dependency=afterok:$teacher {size} {SCRIPT} {file}",
    ]
    return [*lines, *([f"{deepspeed} {teacher} && {deepspeed} {file}"] if options.gpus == each else [])]


if __name__ == "__main__":
    cli.run(main)
