"""Write the weights of a run, or of a released file, for other programs.

python pipelines/export.py runs/digits/cd --format safetensors --out exported   model.safetensors and config.yaml,
cmdist's own names
python pipelines/export.py RUN --out exported            a folder that diffusers'
ConsistencyModelPipeline.from_pretrained loads
python pipelines/export.py CONFIG.yaml --weights FILE --out exported            the same of a file of weights, as CONFIG
describes it

The file of weights may be one of the released consistency models (.pt), guided-diffusion's (with --qkv-order), or
safetensors.
"""

import argparse
import json
from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor

from cmdist import build
from cmdist import config as configuration
from cmdist.build import Model
from cmdist.core.noise import karras_sigmas
from cmdist.errors import ConfigError
from cmdist.kinds.kind import bounded
from cmdist.kinds.networks import Adm
from cmdist.nets import diffusers, released
from cmdist.nets.unet import UNet
from cmdist.system import cli, storage

LEVELS = 1281  # of the scheduler's grid where the objective has none: improved CT's finest


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", help="a run folder or the folder of one of its checkpoints; with --weights a configuration file"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a folder or URL where nothing is yet")
    parser.add_argument(
        "--format", choices=("diffusers", "safetensors"), default="diffusers", help="default: %(default)s"
    )
    parser.add_argument("--ema", type=float, metavar="DECAY", help="which average; default: the first of train.ema")
    parser.add_argument(
        "--weights", metavar="FILE", help="a file of weights (.pt, .pth, .safetensors) to export instead of a run's"
    )
    parser.add_argument(
        "--qkv-order", choices=("legacy", "new"), help="of a guided-diffusion file: its order of attention weights"
    )
    options = parser.parse_args(arguments)
    if storage.names(options.out) or storage.exists(options.out):
        raise ConfigError(f"--out {options.out} is there already; give a folder where nothing is yet")
    if options.weights and options.ema is not None:
        raise ConfigError("--ema is for runs; a file holds one set of weights")
    model = build.open_model(options.run, options.ema, options.weights, options.qkv_order)
    write = to_diffusers if options.format == "diffusers" else to_safetensors
    write(model, options.out)
    print(options.out)


def to_safetensors(model: Model, out: str) -> None:
    """The weights under their own names, and the configuration;
    `teacher:`, `init:` and --weights read the file again.
    """
    with torch.device("meta"):
        released.check(build.network(model.config), model.weights, model.where)
    said = {"network.norm_groups": "by_width"} if getattr(model.config.network, "norm_groups", 32) is None else {}
    config = configuration.replaced(model.config, said)  # for who reads the file as one of weights
    storage.write(storage.join(out, "config.yaml"), configuration.dump(config).encode())
    storage.write(storage.join(out, "model.safetensors"), _pack(model.weights))


def to_diffusers(model: Model, out: str) -> None:
    """The folder of a ConsistencyModelPipeline, its model_index.json last: without it diffusers does not load."""
    config, network, noise = model.config, model.config.network, model.config.noise
    if config.kind.makes != "consistency":
        what = "a denoiser" if config.kind.makes == "denoiser" else f"of objective {config.kind_name}"
        raise ConfigError(
            f"{model.where} is {what}; a ConsistencyModelPipeline needs a consistency "
            "model (--format safetensors takes any)"
        )
    if config.kind.scalings is not bounded or noise.c_noise != "log":
        raise ConfigError(
            f"{model.where}: diffusers has the scalings of consistency distillation and training only, with "
            "noise.c_noise log (--format safetensors takes any)"
        )
    with torch.device("meta"):
        net = build.network(config)
    if not (isinstance(network, Adm) and isinstance(net, UNet)):
        raise ConfigError(f"{model.where}: diffusers' pipeline takes network kind adm (--format safetensors takes any)")
    released.check(net, model.weights, model.where)
    n_timesteps = int(build.numbers(config, config.train.steps).get("n_timesteps", LEVELS))
    files = {
        "unet/config.json": diffusers.unet_config(net, network.channel_mult, network.num_res_blocks),
        "scheduler/scheduler_config.json": diffusers.scheduler_config(
            n_timesteps, noise.sigma_min, noise.sigma_max, noise.sigma_data, noise.rho
        ),
        "model_index.json": diffusers.MODEL_INDEX,
    }
    weights = diffusers.weights(net, model.weights, network.num_res_blocks)
    storage.write(storage.join(out, "unet/diffusion_pytorch_model.safetensors"), _pack(weights))
    for name, content in files.items():
        storage.write(storage.join(out, name), (json.dumps(content, indent=2) + "\n").encode())
    sigmas = karras_sigmas(n_timesteps, noise.sigma_min, noise.sigma_max, noise.rho)
    steps = [int((sigmas - time).abs().argmin()) for time in config.sampling.times]
    print(
        f"in diffusers sampling.times is pipe(num_inference_steps=None, timesteps={steps[::-1]}), of {n_timesteps} "
        "noise levels"
    )


def _pack(weights: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: value.contiguous() for name, value in weights.items()}, metadata={"format": "pt"}
    )


if __name__ == "__main__":
    cli.run(main)
