"""Ceph's own S3 gateway on loopback: one monitor, one OSD that keeps its data in a sparse file, one radosgw, all below
one folder.
"""

import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType

from ranks import free_port
from servers import KEY, SECRET, wait_for

PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "radosgw-admin")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

CONF = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon1}]
public network = 127.0.0.0/8
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = true
keyring = {root}/keyring
run dir = {root}/run
admin socket = {root}/run/$name.asok
log file = {root}/log/$name.log
pid file = {root}/run/$name.pid
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon pg warn min per osd = 0
mon osd initial require min compat client = luminous
mon data avail crit = 1
mon data = {root}/mon
paxos propose interval = 0.05
paxos min wait = 0.02
osd data = {root}/osd
osd objectstore = bluestore
bluestore block size = 4294967296
bluestore block create = true
osd max object name len = 256
osd max object namespace len = 64
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw run sync thread = false
rgw enable usage log = false
"""


class Ceph:
    """A cluster of its own; `kill` and `start` as often as wanted, the data stay."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        for name in ("mon", "osd", "rgw", "run", "log"):
            (root / name).mkdir(parents=True)
        mon, mon1, fsid = free_port(), free_port(), str(uuid.uuid4())
        self.conf = root / "ceph.conf"
        self.conf.write_text(CONF.format(fsid=fsid, mon=mon, mon1=mon1, root=root, port=self.port))
        for name in ("mon.", "client.admin", "osd.0", "client.rgw"):
            caps = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
            new = ["--create-keyring"] if name == "mon." else []
            self.run("ceph-authtool", str(root / "keyring"), *new, "--gen-key", "-n", name, *caps)
        addresses = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon1}]"
        self.run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, str(root / "monmap"))
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(root / "monmap"), "--keyring", str(root / "keyring"))
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.daemon("ceph-mon", "-f", "-i", "a")
        self.until("ceph", "-s")
        osd = str(uuid.uuid4())
        self.run("ceph", "osd", "new", osd)
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config")
        self.gateway()
        user = ["user", "create", "--uid=t", "--display-name=t", f"--access-key={KEY}", f"--secret-key={SECRET}"]
        self.run("radosgw-admin", *user)

    def gateway(self) -> None:
        self.daemon("ceph-osd", "-f", "-i", "0")
        self.until("ceph", "osd", "stat", says="1 up")
        wait_for(self.port, self.daemon("radosgw", "-f", "-n", "client.rgw"), 60)

    def start(self) -> None:
        """After `kill`, on the same data."""
        self.daemon("ceph-mon", "-f", "-i", "a")
        self.until("ceph", "-s")
        self.gateway()

    def kill(self) -> None:
        """SIGKILL of all daemons at once."""
        for process in self.daemons:
            process.send_signal(signal.SIGKILL)
        for process in self.daemons:
            process.wait()
        self.daemons = []

    def daemon(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with open(self.root / "log" / f"{program}.out", "ab") as log:
            self.daemons.append(
                subprocess.Popen([program, "-c", self.conf, *arguments], stdout=log, stderr=log, env=self.environment())
            )
        return self.daemons[-1]

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CEPH_"))}

    def run(self, program: str, *arguments: str, timeout: float = 60) -> str:
        own = [] if program in ("ceph-authtool", "monmaptool") else ["-c", str(self.conf)]
        done = subprocess.run(
            [program, *own, *arguments], capture_output=True, text=True, timeout=timeout, env=self.environment()
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def until(self, program: str, *arguments: str, says: str = "") -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                if says in self.run(program, *arguments, timeout=5):
                    return
            except (AssertionError, subprocess.TimeoutExpired):
                assert time.monotonic() < deadline, f"{program} {arguments} does not answer"
            time.sleep(0.1)

    def __enter__(self) -> "Ceph":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
