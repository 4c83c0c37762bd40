"""Look, in seconds and on every rank, whether a run could train here;
the step before pipelines/train.py in the jobs of cluster/.

srun python pipelines/preflight.py CONFIG [key=value ...]

It looks at the configuration, the data and other weights that it names, the run's folder (which all nodes must share),
the devices, and whether the ranks reach each other. Each failure is one line that names the node. Exit code 2: starting
again would not help; 1: on other nodes, or later, it might.
"""

import argparse
import contextlib
import io
import ipaddress
import json
import os
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import cmdist
from cmdist import build
from cmdist import config as configuration
from cmdist.checkpoints import attempt as attempts
from cmdist.checkpoints import search
from cmdist.errors import CmdistError, ConfigError, DataError, RunInUse
from cmdist.system import cli, distributed, launchers, storage
from cmdist.system.distributed import World
from cmdist.system.texts import counted
from cmdist.system.typed import Document, Shape
from cmdist.train import beforehand

PATIENCE = 120.0  # seconds for the ranks to find each other
FIRST = (2, 4)  # exit codes that go first: another start would find the same


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, e.g. configs/digits/ct.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted keys of the configuration, e.g. train.steps=100"
    )
    parser.add_argument(
        "--starts", metavar="FILE", help="where the number of starts in a row from the same committed step is kept"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=5,
        help="with --starts: restarts in a row without progress (default %(default)s)",
    )
    parser.add_argument(
        "--resume", default="auto", metavar="auto|none|URL", help="as of pipelines/train.py (default %(default)s)"
    )
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    rank, size, local = launchers.place()
    with contextlib.redirect_stderr(io.StringIO()) if local else contextlib.nullcontext():
        options = parser.parse_intermixed_args(arguments)
    # Every rank of a job says the same about these; the first one of a node says it for all of them.
    failures = Failures(node, quiet=local != 0)
    config = None
    with failures.noted("config", 2):
        config = configuration.load(options.config, options.overrides)
        if config.micro_batches % size:
            raise ConfigError(
                f"{size} ranks cannot share train.global_batch / train.micro_batch = {config.micro_batches} evenly"
            )
        build.on_meta(config)
    if config is None or failures.code:
        sys.exit(failures.code)
    run_url = storage.join(storage.absolute(config.run.root), config.run.name)
    probe = f"preflight-{uuid.uuid4().hex[:12]}"  # another one's, of a second job, may be there too
    if local == 0:
        with failures.noted("run.root", 2):
            storage.write(storage.join(run_url, probe), node.encode())
        of_data_and_weights = ("data", "weights") if failures.code else None  # the others look into the run's folder
        for what, check in beforehand.checks(config, run_url, options.resume):
            with failures.noted(what, 2):
                if of_data_and_weights is None or what in of_data_and_weights:
                    check()
        with failures.noted("data", 2):
            if not failures.code:
                build.dataset(config).image(0)
    failures.quiet = False
    device = torch.device("cpu")
    with failures.noted(f"device of rank {rank}", 1):
        device = check_device(local)
    codes, step = [1], 0
    if local == 0 and several_nodes(size):
        with failures.noted("host name", 2):
            check_host_name()
    with failures.noted("collective", 1):
        world = distributed.start(PATIENCE)
        failures.quiet, apart = not world.first, False  # every rank finds the same
        with failures.noted("devices", 2):
            distributed.check_apart(world)
            apart = True
        failures.quiet = False
        if apart:
            check_collective(world, device)
        mine = {"configuration": configuration.dump(config), "cmdist": cmdist.__version__, "torch": torch.__version__}
        everyone = distributed.gather(mine, world.control)
        with failures.noted("agreement", 2):
            check_agreement(everyone, rank)
        probes = distributed.gather((local == 0 and probe, node), world.control)
        if local == 0 and not failures.code:
            with failures.noted("run.root", 2):
                check_shared(run_url, [each for each in probes if each[0]])
        if world.first and not failures.code:
            with failures.noted("checkpoints", 2):
                step = max(search.steps(run_url), default=0)
                attempts.refuse_in_use(run_url)
        if world.first and not failures.code and options.starts and step < config.train.steps:
            with failures.noted("restarts", 2):
                count_start(Path(options.starts), step, options.max_restarts)
        codes = distributed.gather(failures.code, world.control)
    if local == 0:
        with contextlib.suppress(Exception):  # it could not be written
            storage.remove(storage.join(run_url, probe))
    codes.append(failures.code)
    if any(codes):
        sys.stdout.flush()
        # past the process group, which would wait for ranks that could not join it
        os._exit(next((code for code in FIRST if code in codes), max(codes)))
    distributed.stop(world)
    if world.first:
        ranks = f"{counted(size, 'rank')} on {device.type}"
        print(f"preflight: {ranks}, step {step:,} of {config.train.steps:,} is committed", flush=True)


class Failures:
    """Prints failures, one line each, and keeps the exit code of the first."""

    def __init__(self, node: str, quiet: bool) -> None:
        self._node, self.quiet, self.code = node, quiet, 0

    @contextlib.contextmanager
    def noted(self, what: str, code: int) -> Iterator[None]:
        """A failure inside the block is printed, unless another rank of the node prints the same;
        `code` is that of one that lasts.
        """
        try:
            yield
        except Exception as error:
            own = error.exit_code if isinstance(error, CmdistError) else 1
            self.code = self.code or (own if cli.passes(error) or isinstance(error, RunInUse) else code)
            if not self.quiet:
                sentence = str(error) if isinstance(error, CmdistError) else cli.sentence(error)
                sys.stderr.write(f"preflight: {self._node}: {what}: {' '.join(sentence.split())}\n")
                sys.stderr.flush()
                cli.note_failure(f"{what}: {' '.join(sentence.split())}")


def check_device(local: int) -> torch.device:
    """This rank's device computes. Raises ConfigError if Slurm gave GPUs to the task that torch does not see."""
    given, seen = gpus_given(local), torch.cuda.device_count()
    if seen < given:
        raise ConfigError(f"Slurm gave this task {counted(given, 'GPU')}, torch {torch.__version__} sees {seen}")
    device = torch.device("cuda", local % seen) if seen else torch.device("cpu")
    if torch.ones(64, 64, device=device).square().sum().item() != 4096:
        raise ConfigError(f"{device} computes nonsense")
    return device


def gpus_given(local: int) -> int:
    """How many GPUs Slurm lets this task see: those of its node, or its own with --gpus-per-task and --gpu-bind; 0 for
    a task more than the node has GPUs.
    """
    node = int(os.environ.get("SLURM_GPUS_ON_NODE", "0") or 0)
    own = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return min(node, len(own)) if own else node * (local < node)


def several_nodes(size: int) -> bool:
    """Whether the launcher says that the `size` ranks are on more than one node."""
    nodes = os.environ.get("SLURM_NNODES") or os.environ.get("SLURM_JOB_NUM_NODES")
    return int(nodes) > 1 if nodes else int(os.environ.get("LOCAL_WORLD_SIZE", size)) < size


def check_host_name() -> None:
    """Other nodes can reach this one by the address of its name, which gloo gives them. Raises ConfigError."""
    name, first = socket.gethostname(), os.environ.get("MASTER_ADDR", "")
    # If the first node is at loopback too, all are on this machine, or this is the first and the others will say it.
    if os.environ.get("GLOO_SOCKET_IFNAME") or not at_loopback(name) or at_loopback(first):
        return
    cards = [card for _, card in socket.if_nameindex() if card != "lo"]
    raise ConfigError(
        f"the host name {name} gives gloo the loopback address, where other nodes do not reach this one: set "
        f"GLOO_SOCKET_IFNAME to the network card between the nodes ({', '.join(cards) or 'none is here'}), and "
        "NCCL_SOCKET_IFNAME as well if there are several (cluster/train.bash shows where), or mend /etc/hosts"
    )


def at_loopback(name: str) -> bool:
    """Whether gloo takes a loopback address for this host name: the first that is this machine's own, and without
    any the fall-back; for another machine's name, whether it means loopback here.
    """
    try:
        addresses = [entry[4][0] for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return name == socket.gethostname()
    own = [address for address in addresses if bindable(str(address))] if name == socket.gethostname() else addresses
    return not own or ipaddress.ip_address(str(own[0]).partition("%")[0]).is_loopback


def bindable(address: str) -> bool:
    """Whether an IP address is this machine's own."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def check_collective(world: World, device: torch.device) -> None:
    """A sum over all ranks on their devices."""
    total = torch.ones(1, device=device)
    dist.all_reduce(total)
    if total.item() != world.size:
        raise ConfigError(f"a sum of ones over {world.size} ranks is {total.item():g}")


def check_agreement(everyone: Sequence[Mapping[str, str]], rank: int) -> None:
    """All ranks have the configuration and the versions of the first one. Raises ConfigError."""
    for key, value in everyone[rank].items():
        if value != everyone[0][key]:
            other = "" if key == "configuration" else f" ({value}, not {everyone[0][key]})"
            raise ConfigError(
                f"rank {rank} has another {key}{other} than rank 0; all nodes must share the repository and PYTHON"
            )


def check_shared(run_url: str, probes: Sequence[tuple[str, str]]) -> None:
    """What each node has written under the names (probe, node), this one sees. Raises ConfigError."""
    there = storage.names(run_url)
    for probe, node in probes:
        if probe not in there:
            raise ConfigError(f"{run_url} does not show what {node} has written there; all nodes must share it")


class Starts(Shape):
    """Starts in a row from a committed step."""

    step: int
    starts: int


STARTS = Document(Starts)


def count_start(path: Path, step: int, most: int) -> None:
    """Count this start from committed step `step` in a local file.
    Raises ConfigError if there were too many in a row.
    """
    before = {"step": -1, "starts": 0}
    with contextlib.suppress(FileNotFoundError, DataError):  # what a full disk or a kill has left counts for nothing
        before = STARTS.read(path.read_bytes(), str(path))
    starts = before["starts"] + 1 if before["step"] == step else 1
    if starts > most + 1:
        raise ConfigError(
            f"{most} restarts in a row have committed nothing beyond step {step}; see the logs of the ranks"
        )
    storage.write(str(path), json.dumps({"step": step, "starts": starts}).encode())


if __name__ == "__main__":
    cli.run(main)
