"""A process's place beside others: its GPU, and how long it waits for them; torch.cuda is patched."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from cmdist.errors import ConfigError
from cmdist.system import distributed, launchers, rendezvous
from cmdist.system.distributed import World
from ranks import REPOSITORY


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many GPUs the process sees; what it did with them."""
    done: dict[str, Any] = {}

    def see(gpus: int, **variables: str) -> dict[str, Any]:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")  # one that was not there is only put back if it was set here first
            monkeypatch.delenv(name)
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.update(device=device))
        monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: done.update(backend=backend))
        monkeypatch.setattr(distributed.rendezvous, "store", lambda rank, size: Met())
        monkeypatch.setattr(distributed.rendezvous, "wait_for_all", lambda store, size: None)
        monkeypatch.setattr(dist, "new_group", lambda backend, timeout: done.update(control=timeout.total_seconds()))
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            monkeypatch.setattr(dist.distributed_c10d, name, None)
        return done

    return see


# variables by which each start form tells a process its rank
OF_RANKS = {
    "torchrun": "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE "
    "ROLE_NAME MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_USE_AGENT_STORE",
    "deepspeed": "RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR MASTER_PORT",
    "srun": "SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_STEP_ID SLURM_JOB_ID SLURM_CONF_SERVER SRUN_DEBUG "
    "PMI_RANK PMIX_RANK",
    "mpirun": "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK PMIX_NAMESPACE",
}


@pytest.mark.parametrize("launcher", OF_RANKS)
def test_a_process_beside_the_ranks_is_told_nothing_of_theirs(launcher: str) -> None:
    others = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "me", "RANK_OF_HONOUR": "1", "OMP_NUM_THREADS": "1"}
    found = launchers.without_ranks(others | dict.fromkeys(OF_RANKS[launcher].split(), "1"))
    assert found == others


def test_the_list_of_launcher_variables_is_in_one_place() -> None:
    files = [path for folder in ("cmdist", "pipelines", "cluster") for path in (REPOSITORY / folder).rglob("*.py")]
    assert [path.name for path in files if "PMIX" in path.read_text()] == ["launchers.py"]


@pytest.mark.parametrize(("gpus", "index"), [(1, 0), (8, 3)])
def test_deepspeed_is_told_the_gpu_that_the_process_sees(node: Any, gpus: int, index: int) -> None:
    """It calls set_device(LOCAL_RANK): task 3 of a node has GPU 0 if it sees its own alone (--gpus-per-task=1)."""
    done = node(gpus, RANK="11", WORLD_SIZE="16", LOCAL_RANK="3")
    world = distributed.start(100.0)
    assert done["device"] == world.device == torch.device("cuda", index) and done["backend"] == "nccl"
    assert os.environ["LOCAL_RANK"] == str(index) and (world.rank, world.local_rank) == (11, 3)
    assert done["control"] == 100.0


def test_without_gpus_the_local_rank_stays(node: Any) -> None:
    node(0, SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_LOCALID="1", SLURM_STEP_ID="0")
    assert distributed.start().local_rank == 1 and os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("uuids", "sentence"),
    [
        (["a", "b", "c"], None),
        (
            ["a", "b", "a"],
            r"ranks 0, 2 share one GPU \(a\), and NCCL needs one for each: start no more ranks on a node",
        ),
    ],
)
def test_two_ranks_on_one_gpu_are_a_sentence_on_every_rank(
    monkeypatch: pytest.MonkeyPatch, uuids: list[str], sentence: str | None
) -> None:
    monkeypatch.setattr(distributed, "gather", lambda mine, group: uuids)
    for rank, uuid in enumerate(uuids):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, uuid=uuid: SimpleNamespace(uuid=uuid))
        world = World(rank, len(uuids), 0, torch.device("cuda", 0))
        if sentence is None:
            distributed.check_apart(world)
        else:
            with pytest.raises(ConfigError, match=sentence):
                distributed.check_apart(world)


class Met:
    """A store in which rank 0 has found nothing."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set_timeout(self, timeout: Any) -> None:
        pass

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return b"0"


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-3"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "abc"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "70000"},
        {"SLURM_PROCID": "x", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"},
    ],
)
def test_impossible_variables_of_a_launcher_are_a_sentence(node: Any, variables: dict[str, str]) -> None:
    node(0, **variables)
    with pytest.raises(ConfigError, match=r"whole numbers|are those of no rank|a port from 1 to 65535"):
        distributed.start()


def test_ranks_on_cpus_share_them() -> None:
    distributed.check_apart(World())


PLACES = {
    "plain": ({}, (0, 1, 0)),
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1)),
    "srun": ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}, (2, 4, 0)),
    "an interactive step": (
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}
        | {"SLURM_STEP_ID": "4294967290"},
        (0, 1, 0),
    ),
    "a batch script": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0)),
}
NOWHERE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
NOWHERE = (*NOWHERE, "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(given: dict[str, str]) -> None:
        for name in NOWHERE:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("name", PLACES)
def test_c_a_step_counts_its_own_tasks(variables: Any, name: str) -> None:
    given, place = PLACES[name]
    variables(given)
    assert launchers.place() == place


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "5"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4"},
        {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"},
    ],
)
def test_c_variables_that_contradict_each_other_are_refused_at_once(variables: Any, given: dict[str, str]) -> None:
    variables(given)
    with pytest.raises(ConfigError, match="are those of no rank|without RANK") as error:
        launchers.place()
    assert error.value.exit_code == 2


def test_c_a_rank_whose_others_never_come_says_so_and_gives_up(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(rendezvous, "JOIN", 1.0)
    monkeypatch.setattr(rendezvous, "SAID_AFTER", 0.2)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(distributed.free_port()))
    with pytest.raises(ConfigError, match=r"rank 1 has not met rank 0 of 3 at 127\.0\.0\.1:\d+ in 1 s"):
        rendezvous.store(1, 3)
    store = rendezvous.store(0, 3)
    with pytest.raises(ConfigError, match=r"of 3 ranks 2 did not come within 1 s: 1, 2; look at their first error"):
        rendezvous.wait_for_all(store, 3)
    said = capfd.readouterr().err
    assert "rank 1 waits for rank 0 of 3 at 127.0.0.1:" in said and "rank 0 waits for all 3 ranks (up to 1 s)" in said


def listening() -> set[str]:
    """Addresses on which this process listens."""
    return {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_b6_the_store_of_one_node_listens_on_the_loopback_alone(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(distributed.free_port()))
    before = listening()
    store = rendezvous.store(0, 1)
    store.set("a", "b")
    assert store.get("a") == b"b" and listening() - before <= {"127.0.0.1", "::1"} and listening()


def test_b6_a_group_of_one_rank_listens_on_the_loopback_alone() -> None:
    code = (
        "from cmdist.system import distributed; import psutil; world = distributed.start();"
        "print({c.laddr.ip for c in psutil.Process().net_connections('tcp') if c.status == 'LISTEN'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.stdout.strip() == "{'127.0.0.1'}", done.stderr


def test_b6_a_name_of_this_node_that_means_its_loopback_only_here_is_listened_to_everywhere() -> None:
    assert not rendezvous.is_loopback("node17") and rendezvous.is_loopback("::1")
