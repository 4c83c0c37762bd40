"""Make a file of weights for this project of one of EDM's published pickles, of which nothing is run.

python pipelines/convert.py edm-imagenet-64x64-cond-adm.pkl --out edm-imagenet64.safetensors
python pipelines/sample.py CONFIG.yaml --weights edm-imagenet64.safetensors --out samples.png

Prints the keys of a configuration that describe the network; they are in the file's header too, with the source's
checksum. As a teacher: objective.teacher=edm-imagenet64.safetensors, with those keys.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence

import safetensors.torch
import yaml

from cmdist.errors import CheckpointError, ConfigError
from cmdist.nets import edm_files, inert
from cmdist.system import cli, storage


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a pickle as published, a path or URL")
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in .safetensors; must not be there yet")
    options = parser.parse_args(arguments)
    with cli.before_start():  # nothing is written before the file is known to be right
        if not options.out.endswith(".safetensors"):
            raise ConfigError(f"--out {options.out} must end in .safetensors")
        if storage.exists(options.out):
            raise ConfigError(f"--out {options.out} is there already; give a file that is not")
        edm_files.check_name(options.file)
        try:
            content = storage.read(options.file)
        except FileNotFoundError:
            raise CheckpointError(f"there is no file {options.file}") from None
        made = edm_files.conversion(inert.read(content, options.file), options.file)
    header = {
        "format": "pt",
        "source": options.file.rpartition("/")[2],
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "preconditioning": "edm",
        "keys": json.dumps(made.keys),
    }
    tensors = {name: value.float().contiguous() for name, value in made.weights.items()}
    storage.write(options.out, safetensors.torch.save(tensors, header))
    print(yaml.safe_dump(made.keys, default_flow_style=None, sort_keys=False, width=110), end="")
    print(options.out)


if __name__ == "__main__":
    cli.run(main)
