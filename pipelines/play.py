"""A page on this machine to play with a model: sample, compare, interpolate, draw and edit.

python pipelines/play.py                                              the emoji models that come with the code
python pipelines/play.py RUN
python pipelines/play.py configs/emoji/cd.yaml --weights configs/emoji/weights/cd.safetensors

It is at 127.0.0.1 only, and loads nothing from elsewhere. Ctrl-C ends it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from cmdist import quality
from cmdist.errors import ConfigError
from cmdist.play import player
from cmdist.play.room import Room
from cmdist.system import cli

EMOJI = Path(__file__).resolve().parents[1] / "configs/emoji"


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", help="a run folder or a checkpoint; with --weights a configuration file; default: emoji"
    )
    parser.add_argument("--weights", metavar="FILE", help="a file of weights instead of a run")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="which average; default: the first of train.ema")
    parser.add_argument("--beside", metavar="RUN", help="a second model, shown on the same noise")
    parser.add_argument("--beside-weights", metavar="FILE", help="its file of weights instead of a run")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default %(default)s)")
    options = parser.parse_args(arguments)
    server = _server()
    for given, needed in (("weights", "run"), ("ema", "run"), ("beside_weights", "beside")):
        if getattr(options, given) is not None and getattr(options, needed) is None:
            raise ConfigError(f"--{given.replace('_', '-')} is of a model, and none is given")
    if options.run is None:
        options.run, options.weights = _emoji("cd")
        if options.beside is None:
            options.beside, options.beside_weights = _emoji("edm")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quality.set_up_process()
    with cli.before_start():
        first = player.opened(options.run, options.weights, options.ema, device)
        second = player.opened(options.beside, options.beside_weights, None, device) if options.beside else None
    with server.listening(options.port) as at:
        print(f"http://{server.HOST}:{at.getsockname()[1]}/ is open; Ctrl-C ends it", flush=True)
        server.serving(Room(first, second), at).serve_forever()


def _emoji(name: str) -> tuple[str, str]:
    """Configuration and weights of a model that comes with the code."""
    return str(EMOJI / f"{name}.yaml"), str(EMOJI / "weights" / f"{name}.safetensors")


def _server():  # type: ignore[no-untyped-def]
    try:
        from cmdist.play import server
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs {error.name}: pip install -e '.[play]'") from error
    return server


if __name__ == "__main__":
    cli.run(main)
