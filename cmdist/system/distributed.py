"""Rank, world, agreement between ranks, and stop requests."""

import contextlib
import datetime
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from cmdist.errors import CmdistError, ConfigError
from cmdist.system import descriptors, launchers, rendezvous

_CAUSE, _LOOKED_AT = "cmdist/first-failure", "cmdist/looked-at"
PATIENCE = 7200.0  # seconds that ranks wait for each other where no step is watched, as in evaluation
TELLING = 60.0  # seconds for which a rank 0 that ends before there is a group waits for the others, to tell them why
MARGIN = 60.0  # seconds that they wait longer than a watchdog, so that it speaks first


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, and the device that it computes on."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")
    control: Any = None  # a gloo group of all ranks for small messages, beside the one that gradients use
    alive: Callable[..., object] = lambda longer=0.0: None  # whenever something is done: else a watchdog ends all

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints, tracks and commits."""
        return self.rank == 0


def start(patience: float = PATIENCE, look: Callable[[], object] = lambda: None) -> World:
    """Join the process group (NCCL with GPUs, else gloo); the same code for deepspeed, torchrun, srun and plain
    python. `patience`: seconds after which a rank that waits for others gives up, in every group.

    `look` is called by rank 0 before there is a group, and what it raises ends all ranks with its sentence.
    """
    rank, size, local = launchers.place()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    # To DeepSpeed a local rank is the number of its GPU, which is 0 on every rank if each sees its own alone.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(device.index if cuda else local))
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(
                f"{size} ranks need the variable {name}; start with deepspeed, torchrun or cluster/train_lsun.sbatch, "
                "which set it"
            )
    if not os.environ["MASTER_PORT"].isdigit() or not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
        raise ConfigError(f"MASTER_PORT={os.environ['MASTER_PORT']}: a port from 1 to 65535 is needed")
    descriptors.reserve(size)
    if cuda:
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=patience)
    if rendezvous.is_loopback(os.environ["MASTER_ADDR"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", rendezvous.loopback_name())
    # A group that does not say how long it waits, as DeepSpeed's, takes these and not the first group's.
    dist.distributed_c10d.default_pg_timeout = timeout  # type: ignore[attr-defined]
    dist.distributed_c10d.default_pg_nccl_timeout = timeout  # type: ignore[attr-defined]
    store = _looked_at(rank, size, timeout, look)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    return World(rank, size, local, device, gloo_group(size))


def _looked_at(rank: int, size: int, timeout: datetime.timedelta, look: Callable[[], object]) -> Any:
    """The store where the ranks meet, once rank 0 has looked. Raises on all ranks what it has found."""
    failure: CmdistError | None = None
    store = rendezvous.store(rank, size)  # so that others find it while rank 0 looks
    if rank == 0:
        try:
            look()
        except CmdistError as error:
            failure = error
    if size == 1 and failure:
        raise failure
    if failure:
        timeout = min(timeout, datetime.timedelta(seconds=TELLING))
    try:
        if rank == 0 and failure is None:
            try:
                rendezvous.wait_for_all(store, size)
            except ConfigError as error:
                failure = error
        store.set_timeout(timeout)
        if rank == 0:
            store.set(_LOOKED_AT, f"{failure.exit_code} {failure}" if failure else "0")
            if failure:
                store.wait([f"{_LOOKED_AT}/{other}" for other in range(1, size)])
        else:
            code, _, sentence = store.get(_LOOKED_AT).decode().partition(" ")
            store.set(f"{_LOOKED_AT}/{rank}", "")
            if code != "0":
                failure = PeerFailed(sentence)
                failure.exit_code = int(code)
    except (RuntimeError, ValueError) as error:
        if failure is None:
            raise CmdistError(
                f"rank {rank} has not met the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} in "
                f"{timeout.total_seconds():.0f} s ({' '.join(str(error).split())[:200]})"
            ) from error
    if failure:
        raise failure
    return store


def free_port() -> int:
    """A TCP port of this machine that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gloo_group(size: int, longer: float = 0.0) -> Any:
    """A new gloo group of all `size` ranks, `longer` seconds more patient than the others; None for one rank.
    All ranks must call.
    """
    timeout = dist.distributed_c10d.default_pg_timeout + datetime.timedelta(seconds=longer)  # type: ignore[attr-defined]
    return dist.new_group(backend="gloo", timeout=timeout) if size > 1 else None


def gather(value: Any, group: Any) -> list[Any]:
    """`value` of every rank of a gloo group, in order of rank; [value] without a group. All ranks must call."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def agree(flag: bool, group: Any) -> bool:
    """Whether any rank of a gloo group says yes; `flag` without a group. All ranks must call."""
    if group is None:
        return flag
    vote = torch.tensor([int(flag)])
    dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=group)
    return bool(vote.item())


def check_apart(world: World) -> None:
    """No two ranks compute on one GPU, which NCCL refuses; all ranks must call, and find the same.
    Raises ConfigError.
    """
    gpu = str(torch.cuda.get_device_properties(world.device).uuid) if world.device.type == "cuda" else None
    users: dict[str, list[str]] = {}
    for rank, name in enumerate(gather(gpu, world.control)):
        if name is not None:
            users.setdefault(name, []).append(str(rank))
    for name, ranks in users.items():
        if len(ranks) > 1:
            raise ConfigError(
                f"ranks {', '.join(ranks)} share one GPU ({name}), and NCCL needs one for each: start no more ranks on "
                "a node than it has GPUs, and let each see all of them or one of its own"
            )


class Vote:
    """Whether any rank of a gloo group says yes, asked at every step and answered at the next: nobody waits for the
    slowest rank, and all ranks have the same answer at the same step. All ranks must call.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._asked: tuple[torch.Tensor, Any] | None = None

    def __call__(self, flag: bool) -> bool:
        """Ask, and give the answer to the call before; without a group, `flag`."""
        if self._group is None:
            return flag
        answer, ballot = self.close(), torch.tensor([int(flag)])
        self._asked = ballot, dist.all_reduce(ballot, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def close(self) -> bool:
        """Wait for the last answer."""
        if self._asked is None:
            return False
        ballot, work = self._asked
        work.wait()
        self._asked = None
        return bool(ballot.item())


class StopRequest:
    """Remembers a request to stop (SIGTERM, SIGUSR1, SIGUSR2, SIGINT), to be looked at between steps;
    a second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._pid = os.getpid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a reading process that inherited the handler: its rank tells it when to end
            return
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


class PeerFailed(CmdistError):
    """Another rank failed first; the sentence carries its cause."""


@contextlib.contextmanager
def failing_together(world: World) -> Iterator[None]:
    """Whatever ends one rank ends all:
    the first failure's sentence is put where the others find it, and they repeat it.
    """
    try:
        yield
    except Exception as error:
        first = None
        with contextlib.suppress(Exception):
            store = dist.distributed_c10d._get_default_store()
            if isinstance(error, CmdistError):
                store.set(_CAUSE, f"rank {world.rank}: {error}")
            else:  # perhaps only the echo of another rank's end: give that one a moment to say why
                deadline = time.monotonic() + 3.0
                while not store.check([_CAUSE]) and time.monotonic() < deadline:
                    time.sleep(0.1)
                if store.check([_CAUSE]):
                    first = store.get(_CAUSE).decode()
                else:
                    store.set(_CAUSE, f"rank {world.rank}: {type(error).__name__}: {error}")
        if first is not None:
            raise PeerFailed(f"rank {world.rank} ends because of {first}") from error
        raise


def stop(world: World) -> None:
    """Leave the process group, together."""
    if dist.is_initialized():
        if world.size > 1:  # by gloo: NCCL's barrier would make every GPU wait, in a kernel
            dist.barrier(group=world.control)
        dist.destroy_process_group()
