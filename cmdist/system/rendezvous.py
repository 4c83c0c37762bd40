"""How the ranks of a job find each other."""

import contextlib
import datetime
import errno
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Iterator

import torch.distributed as dist

from cmdist.errors import ConfigError

JOIN = 300.0  # seconds until all ranks must have come
SAID_AFTER = 15.0  # seconds


def store(rank: int, size: int) -> dist.Store:
    """Where the ranks find each other: on the address that they were told, not on every interface of the node.

    Raises ConfigError if rank 0 is not there within JOIN seconds.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's, which listens already
    listening = None if rank or agent else _listening(address, port)
    with _saying(f"rank {rank} waits for rank 0 of {size} at {address}:{port}"):
        try:
            tcp = dist.TCPStore(
                address,
                port,
                None if agent else size,
                not (rank or agent),
                datetime.timedelta(seconds=JOIN),
                wait_for_workers=False,
                multi_tenant=True,
                master_listen_fd=listening.detach() if listening is not None else None,
            )
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"rank {rank} has not met rank 0 of {size} at {address}:{port} in {JOIN:.0f} s "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    met = dist.PrefixStore("cmdist", tcp)
    met.set(f"here/{rank}", "1")
    return met


def wait_for_all(met: dist.Store, size: int) -> None:
    """Of rank 0: wait until every rank is there. Raises ConfigError after JOIN seconds, naming who is not."""
    keys = [f"here/{rank}" for rank in range(size)]
    with _saying(f"rank 0 waits for all {size} ranks"):
        try:
            met.wait(keys, datetime.timedelta(seconds=JOIN))
        except (dist.DistError, RuntimeError) as error:
            missing = [str(rank) for rank, key in enumerate(keys) if not met.check([key])]
            raise ConfigError(
                f"of {size} ranks {len(missing)} did not come within {JOIN:.0f} s: {', '.join(missing[:10])}; look at "
                "their first error, and at RANK and WORLD_SIZE"
            ) from error


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """Say what is waited for inside, if it takes some seconds."""
    timer = threading.Timer(SAID_AFTER, lambda: print(f"{what} (up to {JOIN:.0f} s)", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _listening(address: str, port: int) -> socket.socket | None:
    """A socket of rank 0 on that address alone; None if it is none of this node, as behind a translation of addresses:
    then torch listens on every interface.
    """
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    if is_loopback(str(place[0])) and not is_loopback(address):
        return None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise ConfigError(f"{address}:{port} cannot be listened on: {error.strerror}; take another port") from error
    return listener


def is_loopback(address: str) -> bool:
    """Whether an address is, as it stands, one that only this node can reach. A node's name is none: to the node itself
    it is often a loopback address, and to others its own.
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def loopback_name() -> str:
    """The interface that only this node can reach."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
