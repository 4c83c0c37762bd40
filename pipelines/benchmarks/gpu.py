"""The first hour on a GPU, as one command that needs no network: what works, how fast, and what to look at next.

python pipelines/benchmark.py gpu --minutes 9 --out first-hour
python pipelines/benchmark.py gpu --device cpu --minutes 2 --out /tmp/first-hour      (the same path, small networks)

The parts run one after the other in the order of their importance, each in a process of its own with a limit of time;
one that fails ends nothing else. Each one's result is written at once: parts/NAME.json, with table.md and table.json
of all so far; what a part printed is in logs/NAME.log. The exit code is 1 if a part failed; one for which there was
no time, before or in its midst, has not.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from benchmarks.first_hour.schedule import Part, Setup, run_all

from cmdist.errors import CmdistError, ConfigError
from cmdist.system import cli

PROGRAM = Path(__file__).parents[1] / "benchmark.py"
_CD, _LSUN, _CT = (f"configs/{name}.yaml" for name in ("imagenet64/cd", "lsun_bedroom256/cd", "imagenet64/ct"))
_CIFAR10 = tuple(f"configs/cifar10/{name}_public.yaml" for name in ("ect", "scd", "cd"))
_VGG = "objective.distance.weights=made-up"  # weights of its shape are made for the part

# In the order of importance. `share` is the part of the whole time that it may take at most; most take far less.
PARTS = (
    Part("machine", "versions, pre-flight", 0.12, "runs:machine"),
    Part("digits", "a digits run: bf16, forked readers, pinned snapshots", 0.15, "runs:digits"),
    Part("self-check", "self-check from a teacher", 0.15, "steps:self_checks"),
    Part("deterministic", "40 steps against 20 + SIGKILL + 20", 0.25, "runs:deterministic"),
    Part("overflow", "fp16 from a scale that overflows", 0.12, "runs:overflow"),
    Part("ceilings", "matrix products and copies", 0.08, "device:ceilings"),
    Part("imagenet64-cd", "ImageNet-64 CD", 0.22, "steps:step", (_CD,)),
    Part("lsun-cd", "LSUN CD", 0.25, "steps:step", (_LSUN, "objective.distance.kind=lpips", _VGG)),
    Part("micro-batch-64", "ImageNet-64 CD, twice the micro-batch", 0.22, "steps:step", (_CD, "micro-batch x 2")),
    Part("channels-last", "ImageNet-64 CD, channels_last", 0.22, "steps:step", (_CD, "network.channels_last=true")),
    Part("compile", "ImageNet-64 CD, compiled", 0.3, "steps:step", (_CD, "train.compile=true")),
    Part("imagenet64-ct", "ImageNet-64 CT", 0.22, "steps:step", (_CT,)),
    Part("other-objectives", "ImageNet-64, objectives beside CD and CT", 0.3, "steps:others"),
    Part("profile", "two steps of ImageNet-64 CD in torch's profiler", 0.15, "steps:profile", (_CD,)),
    Part("waits", "where a step waits for the device", 0.15, "steps:waits", (_CD,)),
    Part("cifar10", "CIFAR-10 recipes with the public teachers' networks", 0.25, "steps:recipes", _CIFAR10),
    Part("features", "Inception's features", 0.12, "device:features"),
)


def main(arguments: Sequence[str]) -> None:
    """Run the parts, print the table. Raises ConfigError where there is no GPU, unless it is told to do without, and
    CmdistError at the end if a part failed.
    """
    parser = cli.Parser(
        prog="benchmark.py gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; must be new or empty")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts together (default %(default)g)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same with small networks")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[part.name for part in PARTS])
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    setup = Setup(options.device, options.out.absolute())
    chosen = {part.name: part for part in PARTS}
    if options.part:
        part = chosen[options.part]
        module, _, function = part.function.partition(":")
        getattr(import_module(f"benchmarks.first_hour.{module}"), function)(setup, setup.teller(part.name), *part.given)
        return
    if not (0 < options.minutes < math.inf):
        raise ConfigError(f"--minutes {options.minutes:g}: a number above 0 is needed")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} sees no GPU here; --device cpu runs the same path with small networks"
        )
    if options.out.exists() and any(options.out.iterdir()):
        raise ConfigError(f"--out {options.out} is not empty; results of two hours must not mix, take a new folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the part that runs is then ended, too
    command = [sys.executable, str(PROGRAM), "gpu", "--out", str(setup.out), "--device", setup.device, "--part"]
    parts = [chosen[name] for name in options.only or chosen]
    rows = run_all(parts, lambda part: [*command, part.name], options.minutes * 60.0, setup)
    print(f"\n{(setup.out / 'table.md').read_text()}")
    print(json.dumps({state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}}))
    if failed := [f"{row['part']} ({row['reason']})" for row in rows if row["state"] == "failed"]:
        raise CmdistError(f"{len(failed)} of {len(rows)} parts failed: {', '.join(failed)}")
