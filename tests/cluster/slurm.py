"""A real Slurm on this machine: munge, slurmctld, and each node's slurmd in namespaces of its own, so that it can die
like a machine.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ranks import REPOSITORY, free_port

NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "setpriv")

CONF = """
ClusterName=test
FirstJobId={first}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=20
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=20
BatchStartTimeout=30
KillWait=5
UnkillableStepTimeout=20
MinJobAge=3600
EnforcePartLimits=ALL
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=UNLIMITED DefaultTime=30
PartitionName=grace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=UNLIMITED DefaultTime=30
PartitionName=high  Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=UNLIMITED DefaultTime=30
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    lacks = [name for name in NEEDS if shutil.which(name, path=PATH) is None]
    if lacks:
        return f"no Slurm here: {', '.join(lacks)} missing (apt-get install munge slurmctld slurmd slurm-client)"
    return None if os.geteuid() == 0 else "the nodes' namespaces need root"


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def until(done: Callable[[], object], seconds: float = 60.0, what: Callable[[], str] = lambda: "") -> None:
    """Poll until `done()` is true."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s. {what()}")
        time.sleep(0.1)


class Slurm:
    """A cluster; `size` nodes with daemons, or none (`cloud`): nodes that are only declared, for `sbatch --test-only`.

    With `network` each node has a network of its own, on a bridge, from which `cut` takes it.
    """

    def __init__(self, size: int = 3, cloud: str | None = None, network: bool = False) -> None:
        # short, and open to all up to the root: munge's socket wants both
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.root.chmod(0o755)
        for name in ("munge", "state", "log", "run"):
            (self.root / name).mkdir()
        self.names = [f"node{i + 1}" for i in range(size)]
        port = free_port()
        self._network = f"10.77.{port % 250}" if network else None
        self._bridge = f"cb{port}"
        address = {name: f"{self._network}.{i}" if network else "127.0.0.1" for i, name in enumerate(self.names, 1)}
        controller = f"{self._network}.254" if network else "127.0.0.1"
        nodes = [
            f"NodeName={n} NodeHostname={_host()} NodeAddr={a} Port={free_port()} CPUs=8 RealMemory=16000"
            for n, a in address.items()
        ]
        # job ids give the ports of rendezvous, and several clusters may run on this machine
        conf = CONF.format(
            first=random.randrange(1, 60000),
            host=_host(),
            address=controller,
            port=port,
            root=self.root,
            nodes="\n".join([cloud] if cloud else nodes),
        )
        (self.root / "slurm.conf").write_text(conf)
        (self.root / "cgroup.conf").touch()
        hosts = {"localhost": "127.0.0.1", _host(): controller} | address
        (self.root / "hosts").write_text("".join(f"{a} {name}\n" for name, a in hosts.items()))
        # what a shell that types sbatch has: no variables of a job or a launcher
        gone = ("SLURM_", "SBATCH_", "SRUN_")
        ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(gone) and k not in ranks}
        self.environment |= {"SLURM_CONF": str(self.root / "slurm.conf"), "PATH": PATH, "OMP_NUM_THREADS": "1"}
        self.environment |= {"PYTHONPATH": str(REPOSITORY)}  # whichever checkout is installed
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        key, socket_ = self.root / "munge" / "key", self.root / "munge" / "socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}-file={self.root}/munge/{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", "-F", f"--key-file={key}", f"--socket={socket_}", *files)
        until(socket_.exists, 10)
        if self._network:
            self._connect()
        self._daemon("slurmctld", "-D")
        for name in self.names:
            self.boot(name)
        if self.names:
            idle = f"idle {len(self.names)}"
            until(
                lambda: self.call("sinfo", "-h", "-p", "low", "-o", "%T %D", check=False).strip() == idle, 30, self.logs
            )
        else:
            until(lambda: "UP" in self.call("scontrol", "ping", check=False), 10, self.logs)

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        """A process that dies with this one."""
        output = (self.root / "log" / "daemons").open("ab")
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], env=self.environment, stdout=output, stderr=output
        )
        self._daemons.append(process)
        return process

    def boot(self, name: str) -> None:
        """Start a node: processes, host name and /etc/hosts of its own. SIGKILL of its init is the end of all that ran
        there.
        """
        (self.root / "spool" / name).mkdir(parents=True, exist_ok=True)
        inside = f"mount --bind {self.root}/hosts /etc/hosts && hostname {name} && slurmd -D -N {name} & wait $!"
        # `ip netns exec` would hide /sys/fs/cgroup
        where = ("nsenter", f"--net=/run/netns/{self._link(name)}") if self._network else ()
        self._nodes[name] = self._daemon(
            *where, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "bash", "-c", inside
        )  # fmt: skip

    def _link(self, name: str) -> str:
        """The name of a node's network, and of its cable at the bridge."""
        return f"{self._bridge}{name[-1]}"

    def _connect(self) -> None:
        bridge = self._bridge
        commands = [
            f"link add {bridge} type bridge",
            f"addr add {self._network}.254/24 dev {bridge}",
            f"link set {bridge} up",
        ]
        for i, name in enumerate(self.names, 1):
            cable = self._link(name)
            commands += [
                f"netns add {cable}",
                f"link add {cable} type veth peer name eth0 netns {cable}",
                f"link set {cable} master {bridge} up",
                f"-n {cable} addr add {self._network}.{i}/24 dev eth0",
                f"-n {cable} link set eth0 up",
                f"-n {cable} link set lo up",
            ]
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)

    def cut(self, name: str) -> None:
        """Pull a node's cable: what runs there goes on, and nobody can talk to it."""
        subprocess.run(["ip", "link", "set", self._link(name), "down"], check=True)

    def crash(self, name: str) -> None:
        """The machine loses its power, and Slurm is told so."""
        self._nodes[name].kill()
        self._nodes[name].wait()
        self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=crash")

    def stop(self) -> None:
        if self.names and self._nodes:
            self.call("scancel", "-u", "root", check=False)
            deadline = time.monotonic() + 10
            while self.call("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.05)
        for process in reversed(self._daemons):  # the nodes first; munged last
            if process in self._nodes.values():
                process.kill()  # unshare does not listen to SIGTERM
            else:
                process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._network:
            for name in self.names:
                subprocess.run(["ip", "netns", "delete", self._link(name)])
            subprocess.run(["ip", "link", "delete", self._bridge])
        shutil.rmtree(self.root, ignore_errors=True)

    def call(self, *command: str, check: bool = True, cwd: Path = REPOSITORY, **environment: str) -> str:
        """A client's output, both streams."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment | environment, text=True, stdout=-1, stderr=-2, timeout=60
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted((self.root / "log").iterdir()))


def _host() -> str:
    return socket.gethostname().partition(".")[0]


class Job:
    """A submitted job, started in a folder of its own that looks like the repository's; logs lie there."""

    def __init__(
        self,
        slurm: Slurm,
        folder: Path,
        script: str,
        arguments: Sequence[str],
        options: Sequence[str],
        **environment: str,
    ) -> None:
        import sys

        self.slurm, self.folder = slurm, folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("cluster", "pipelines", "configs", "cmdist"):
            if not (folder / name).exists():
                (folder / name).symlink_to(REPOSITORY / name)
        said = slurm.call(
            "sbatch",
            "--parsable",
            f"--chdir={folder}",
            *options,
            script,
            *arguments,
            cwd=folder,
            PYTHON=sys.executable,
            **environment,
        )
        self.id = said.split()[-1]

    def show(self, key: str) -> str:
        found = re.search(rf"(?:^|\s){key}=(\S*)", self.slurm.call("scontrol", "-o", "show", "job", self.id))
        assert found, key
        return found.group(1)

    @property
    def state(self) -> str:
        return self.show("JobState")

    @property
    def log(self) -> str:
        """The log of the batch script and, after it, those of the nodes."""
        paths = [*self.folder.glob(f"*-{self.id}.log"), *sorted(self.folder.glob(f"logs/*-{self.id}/*.log"))]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in paths)

    def signal_batch(self, name: str) -> None:
        self.slurm.call("scancel", "--batch", f"--signal={name}", self.id)

    def until(self, done: Callable[[], object], seconds: float = 240.0) -> None:
        until(done, seconds, lambda: f"{self.slurm.call('scontrol', 'show', 'job', self.id)}\n{self.log}")

    def until_requeued(self, restarts: int) -> None:
        """Wait until the job has been requeued so many times, and end the two minutes that Slurm lets it wait then."""
        self.until(lambda: int(self.show("Restarts")) >= restarts)
        self.until(lambda: self.state in ("PENDING", "RUNNING"))
        self.start_now()

    def start_now(self) -> None:
        """End the wait of a requeued job."""
        if self.state == "PENDING" and self.show("Reason") == "BeginTime":
            time.sleep(
                2.0
            )  # within the second in which it was requeued, nodes still refuse the job's id: "credential revoked"
            self.slurm.call("scontrol", "update", f"JobId={self.id}", "StartTime=now", check=False)

    def until_over(self, seconds: float = 300.0) -> str:
        """Its last state. On a busy machine Slurm may end a start once more than the test has asked for: that must not
        matter.
        """
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.start_now() or self.state in over, seconds)
        return self.state

    def ranks(self) -> list[int]:
        """Process ids (of this machine) of the ranks of pipelines/train.py."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    variables = (entry / "environ").read_bytes()
                except OSError:
                    continue
                mine = (
                    f"SLURM_CONF={self.slurm.root}".encode() in variables
                    and f"SLURM_JOB_ID={self.id}\0".encode() in variables
                )
                if mine and b"pipelines/train.py" in words and b"python" in words[0] and b"SLURM_PROCID" in variables:
                    found.append(int(entry.name))
        return found

    def kill_rank(self, number: signal.Signals) -> None:
        os.kill(sorted(self.ranks())[-1], number)
