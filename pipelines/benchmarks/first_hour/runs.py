"""Parts that start pipelines/train.py on the digits: does a run work here at all, does it resume bit for bit?"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.first_hour.schedule import REPOSITORY, Setup, Tell, environment

from cmdist.errors import CmdistError

EDM, CT = "configs/digits/edm.yaml", "configs/digits/ct.yaml"
STEPS, FIRST = 40, 20  # of the run that is killed: all, and those before the kill
LARGEST_SCALE = 2.0**32
SMALL = (
    *("network.model_channels=8", "network.channel_mult=[1]", "network.head_channels=8"),
    *("train.global_batch=8", "train.micro_batch=8"),
)


def machine(setup: Setup, tell: Tell) -> None:
    """What is installed, and pre-flight of the digits run, which joins the process group and sums over it."""
    import torch

    from cmdist.system.distributed import World
    from cmdist.tracking import environment as surroundings

    device = torch.device(setup.device)
    facts = surroundings.describe(World(device=device))
    tell({"device": facts["device"], **facts["packages"], "CUDA": facts["CUDA"] or "none", "environment": facts})
    data = digits_data(setup)
    overrides = [f"data.url={data}", f"run.root={setup.out / 'runs'}"]
    done = _python("pipelines/preflight.py", setup, EDM, *overrides)
    if done.returncode:
        raise CmdistError(done.stderr.strip() or f"pre-flight ended with {done.returncode}")
    tell({"pre-flight": done.stdout.strip().splitlines()[-1]})
    if setup.device == "cuda":
        card = torch.cuda.get_device_properties(device)
        tell({"GB": card.total_memory / 1e9, "capability": f"{card.major}.{card.minor}"})
        tell({"NCCL": ".".join(map(str, torch.cuda.nccl.version())), "smi": _said(["nvidia-smi"])})


def digits(setup: Setup, tell: Tell) -> None:
    """The teacher's first steps, read by forked processes, saved twice from pinned memory while it goes on."""
    begin = time.monotonic()
    steps = 30 if setup.small else 300
    overrides = [
        "data.workers=2",
        "train.precision=bf16",
        f"train.steps={steps}",
        f"train.checkpoint_every={steps // 2}",
    ]
    said = train(setup, EDM, "edm", *overrides)
    tell({"steps": steps, "seconds": time.monotonic() - begin} | _lines(said))
    tell({"committed": ", ".join(path.parent.name for path in _commits(setup, "edm"))})


def deterministic(setup: Setup, tell: Tell) -> None:
    """With train.deterministic=true a run that is killed and goes on ends with the bytes of one that was not.
    Raises CmdistError if not.
    """
    common = ["train.deterministic=true", "train.precision=bf16", f"train.checkpoint_every={FIRST}"]
    common += ["optimizer.decay_fraction=0", "network.attention_resolutions=[8]", "network.dropout=0.1"]
    common += ["data.workers=1", "train.glance_every=0", "train.self_check=false"]
    train(setup, CT, "straight", *common, f"train.steps={STEPS}")
    straight = hashes(setup, "straight")
    tell({"files": len(straight)})
    process = subprocess.Popen(
        [sys.executable, "pipelines/train.py", *_arguments(setup, CT, "killed", *common, f"train.steps={STEPS}")],
        cwd=REPOSITORY,
        env=environment(setup.device),
    )
    while process.poll() is None and not _commits(setup, "killed"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tell({"killed after": ", ".join(path.parent.name for path in _commits(setup, "killed"))})
    if len(_commits(setup, "killed")) != 1:
        raise CmdistError(f"the run was to be killed with step {FIRST} committed; it had {_commits(setup, 'killed')}")
    train(setup, CT, "killed", *common, f"train.steps={STEPS}")
    resumed = hashes(setup, "killed")
    different = sorted(name for name in straight.keys() | resumed.keys() if straight.get(name) != resumed.get(name))
    tell({"different": ", ".join(different) or "none"})
    if different:
        raise CmdistError(f"{len(different)} of {len(straight)} files differ after a kill: {', '.join(different)}")


def overflow(setup: Setup, tell: Tell) -> None:
    """fp16 from the largest loss scale, which overflows until it has been halved often enough.
    Raises CmdistError if it never was.
    """
    overrides = ["train.precision=fp16", f"train.loss_scale={LARGEST_SCALE}", "train.steps=10", "data.workers=0"]
    train(setup, EDM, "fp16", *overrides)
    state = json.loads((_commits(setup, "fp16")[-1].parent / "state.json").read_text())
    scale = state["loss_scale"]["value"]
    tell({"first scale": LARGEST_SCALE, "scale after 10 steps": scale})
    if not scale < LARGEST_SCALE:
        raise CmdistError("the largest loss scale did not overflow, so nothing was seen")


def digits_data(setup: Setup) -> Path:
    """The digits that come with scikit-learn as shards, without the extractor, which evaluation would need."""
    from cmdist.data.preparing.shards import write_dataset
    from cmdist.data.preparing.sources.digits import digits as source

    folder = setup.out / "data" / "digits"
    if not (folder / "index.json").exists():
        write_dataset(str(folder), source(), per_shard=200)
    return folder


def train(setup: Setup, config: str, name: str, *overrides: str) -> str:
    """What pipelines/train.py prints. Raises CmdistError with its sentence."""
    done = _python("pipelines/train.py", setup, *_arguments(setup, config, name, *overrides))
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        sentence = errors[0].removeprefix("error: ") if errors else f"ended with {done.returncode}"
        raise CmdistError(f"the run {name}: {sentence}")
    return done.stdout


def hashes(setup: Setup, name: str) -> dict[str, str]:
    """sha256 of each file of the last checkpoint that holds numbers of the model."""
    folder = _commits(setup, name)[-1].parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("COMMIT", "state.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _arguments(setup: Setup, config: str, name: str, *overrides: str) -> list[str]:
    if not (setup.out / "data" / "digits" / "index.json").exists():
        digits_data(setup)
    places = [f"run.root={setup.out / 'runs'}", f"run.name={name}", f"data.url={setup.out / 'data' / 'digits'}"]
    small = SMALL if setup.small else ()
    return [config, *places, *small, "tracking.uri=none", "train.glance_every=0", *overrides]


def _commits(setup: Setup, name: str) -> list[Path]:
    return sorted((setup.out / "runs" / name / "checkpoints").glob("step-*/COMMIT"))


def _python(program: str, setup: Setup, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, program, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(setup.device), text=True, capture_output=True, check=False
    )


def _lines(said: str) -> dict[str, Any]:
    """The lines 'name   what' that training begins with."""
    pairs = (re.split(r"\s{2,}", line, maxsplit=1) for line in said.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in ("ranks", "self-check")}


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, text=True, capture_output=True, check=False, env=dict(os.environ)).stdout
    except OSError as error:
        return str(error)
