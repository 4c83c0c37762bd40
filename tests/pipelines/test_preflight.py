"""Each thing that would stop a run is one line that names the node, and an exit code that says whether to try again."""

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmdist import config as configuration
from cmdist import models
from cmdist.system import storage
from cmdist.train import beforehand
from ranks import Ranks, pipeline, run_pipeline
from training import SMALL, write_config


def on_node(node: str, gpus: int, arguments: list[str]) -> None:
    os.environ.update(SLURMD_NODENAME=node, SLURM_GPUS_ON_NODE=str(gpus))
    run_pipeline("preflight", arguments)


def preflight(folder: Path, *arguments: str, gpus: int = 0, size: int = 2) -> tuple[list[int | None], list[str]]:
    """Exit codes, and the lines of the failures."""
    ranks = Ranks(size, folder / "log", on_node, "node7", gpus, list(arguments))
    codes = ranks.join()
    return codes, [line for line in ranks.text.splitlines() if line.startswith("preflight:")]


def test_a_run_that_can_start(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    assert preflight(tmp_path, config) == ([0, 0], ["preflight: 2 ranks on cpu, step 0 of 20 is committed"])
    assert list((tmp_path / "runs" / "small").iterdir()) == []  # nothing is left


def test_each_failure_is_a_line(tmp_path: Path, digits: str) -> None:
    (tmp_path / "file").touch()
    text = SMALL.replace("objective: denoising", "objective: consistency_distillation\nteacher: nowhere\ninit: teacher")
    codes, lines = preflight(
        tmp_path, write_config(tmp_path, f"{tmp_path}/nodata", text), f"run.root={tmp_path}/file", gpus=4
    )
    assert codes == [2, 2]
    assert len(lines) == 5, lines  # one for each; devices are each rank's own
    assert all(line.startswith("preflight: node7: ") for line in lines)
    for start, says in (
        ("data: ", f"{tmp_path}/nodata"),
        ("weights: ", "nowhere is not a run folder"),
        ("run.root: ", f"{tmp_path}/file"),
        ("device of rank 0: ", "Slurm gave this task 4 GPUs, torch"),
        ("device of rank 1: ", "sees 0"),
    ):
        assert sum(f": {start}" in line and says in line for line in lines) == 1, (start, lines)


@pytest.mark.parametrize("change", ["train.stepz=3", "train.micro_batch=16", "network.head_channels=3"])
def test_an_impossible_configuration(tmp_path: Path, digits: str, change: str) -> None:
    codes, lines = preflight(tmp_path, write_config(tmp_path, digits), change)
    assert codes == [2, 2]
    assert len(lines) == 1 and lines[0].startswith("preflight: node7: config: ")
    assert not (tmp_path / "runs").exists()


def test_a_missing_shard_of_a_remote_store(tmp_path: Path, digits: str) -> None:
    for path in Path(digits).iterdir():
        storage.write(f"memory://shards/{path.name}", path.read_bytes())
    config = configuration.load(write_config(tmp_path, "memory://shards"), [])
    beforehand.check_data(config)
    storage.remove("memory://shards/shard-000005.tar")
    with pytest.raises(ValueError, match=r"memory://shards lacks 1 of 6 shards, the first is shard-000005.tar"):
        beforehand.check_data(config)


def test_a_lost_gpu_may_be_another_node_next_time(tmp_path: Path, digits: str) -> None:
    codes, lines = preflight(tmp_path, write_config(tmp_path, digits), gpus=1)
    assert codes == [1, 1]
    assert len(lines) == 1 and ": device of rank 0: Slurm gave this task 1 GPU," in lines[0]


def test_weights_and_starts_that_are_not_there(tmp_path: Path, digits: str) -> None:
    text = SMALL.replace("objective: denoising", "objective: consistency_distillation")
    text = text.replace(
        "tracking:", "loss: {distance: lpips, lpips_weights: nowhere/vgg.pth}\nteacher: nowhere/edm.pt\ntracking:"
    )
    text = text.replace("channels: 1, classes: 10", "channels: 3")
    config = configuration.load(write_config(tmp_path, digits, text), [])
    with pytest.raises(ValueError, match=r"teacher nowhere/edm.pt is not there"):
        models.check_weights(config, str(tmp_path / "run"), "auto")
    exact = configuration.replaced(config, {"objective.teacher": "exact"})
    with pytest.raises(ValueError, match=r"objective.distance.weights nowhere/vgg.pth is not there"):
        models.check_weights(exact, str(tmp_path / "run"), "auto")
    with pytest.raises(ValueError, match=r"init nowhere/init.safetensors is not there"):
        models.check_weights(
            configuration.replaced(exact, {"init": "nowhere/init.safetensors"}), str(tmp_path / "run"), "auto"
        )


def test_what_a_run_does_not_use_is_not_missed(tmp_path: Path, digits: str) -> None:
    config = configuration.load(write_config(tmp_path, digits), [])
    assert config.lpips is None and config.teacher is None
    models.check_weights(config, str(tmp_path / "run"), "auto")
    training = configuration.replaced(config, {"objective": {"kind": "consistency_training"}, "init": "nowhere/edm.pt"})
    with pytest.raises(ValueError, match=r"init nowhere/edm.pt is not there"):
        models.check_weights(training, str(tmp_path / "run"), "auto")
    storage.write(f"{tmp_path}/run/run.json", b"{}")
    models.check_weights(training, str(tmp_path / "run"), "auto")


def test_a_teacher_of_the_wrong_kind_is_found_before_anything_starts(tmp_path: Path, digits: str) -> None:
    (tmp_path / "cd_x.pt").write_bytes(b"")
    config = configuration.load(write_config(tmp_path, digits), [])
    cd = {"objective": {"kind": "consistency_distillation", "teacher": f"{tmp_path}/cd_x.pt"}}
    config = configuration.replaced(config, cd)
    with pytest.raises(ValueError, match=r"cd_x\.pt is a consistency model by its name, and a denoiser is needed here"):
        models.check_weights(config, str(tmp_path / "run"), "auto")
    ct = {"objective": {"kind": "consistency_training"}, "init": f"{tmp_path}/cd_x.pt"}
    start = configuration.replaced(config, ct)
    models.check_weights(start, str(tmp_path / "run"), "auto")


def test_a_run_that_has_begun_needs_its_start_no_more(tmp_path: Path, digits: str) -> None:
    config = configuration.load(write_config(tmp_path, digits), []).model_copy(
        update={"init": "nowhere/init.safetensors"}
    )
    with pytest.raises(ValueError, match=r"init nowhere/init.safetensors is not there"):
        models.check_weights(config, str(tmp_path / "run"), "none")
    models.check_weights(config, str(tmp_path / "run"), "s3://bucket/another")
    storage.write(f"{tmp_path}/run/run.json", b"{}")
    models.check_weights(config, str(tmp_path / "run"), "auto")


def test_a_start_that_is_not_there(tmp_path: Path, digits: str) -> None:
    codes, lines = preflight(tmp_path, write_config(tmp_path, digits), "--resume", f"{tmp_path}/other")
    assert codes == [2, 2]
    assert len(lines) == 1 and lines[0].startswith(f"preflight: node7: checkpoints: {tmp_path}/other")


def on_its_own_node(folder: str, arguments: list[str]) -> None:
    """Each rank sees a repository of its own."""
    os.chdir(f"{folder}/{os.environ['RANK']}")
    os.environ.update(SLURMD_NODENAME=f"node{os.environ['RANK']}", LOCAL_RANK="0")
    run_pipeline("preflight", arguments)


def test_nodes_with_different_configurations(tmp_path: Path, digits: str) -> None:
    text = Path(write_config(tmp_path, digits)).read_text()
    for rank, steps in enumerate(("steps: 20", "steps: 30")):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "small.yaml").write_text(text.replace("steps: 20", steps))
    ranks = Ranks(2, tmp_path / "log", on_its_own_node, str(tmp_path), ["small.yaml"])
    codes = ranks.join()
    lines = [line for line in ranks.text.splitlines() if line.startswith("preflight:")]
    assert codes == [2, 2] and len(lines) == 1, ranks.text
    assert lines[0].startswith("preflight: node1: agreement: rank 1 has another configuration than rank 0")


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "preflight-a").touch()
    with pytest.raises(ValueError, match=r"does not show what node8 has written"):
        pipeline("preflight").check_shared(str(tmp_path), [("preflight-a", "node1"), ("preflight-b", "node8")])


def test_two_jobs_of_one_run_at_once_do_not_disturb_each_other(tmp_path: Path, digits: str) -> None:
    """They removed each other's probe, and one was told that its nodes share no folder."""
    config = write_config(tmp_path, digits)
    jobs = [Ranks(1, tmp_path / f"log{n}", on_node, f"node{n}", 0, [config]) for n in range(3)]
    assert [job.join() for job in jobs] == [[0]] * 3, [job.text for job in jobs]
    assert list((tmp_path / "runs" / "small").iterdir()) == []


def test_starts_without_progress_are_counted(tmp_path: Path) -> None:
    count, path = pipeline("preflight").count_start, tmp_path / "starts.json"
    for step in (0, 0, 0, 10, 10, 10):
        count(path, step, 2)
    with pytest.raises(ValueError, match=r"2 restarts in a row have committed nothing beyond step 10"):
        count(path, 10, 2)
    count(path, 20, 2)
    assert json.loads(path.read_text()) == {"step": 20, "starts": 1}
    for spoilt in (b"", b'{"step": 20, "sta', b"[]", b'{"step": "20", "starts": 1}'):  # a disk was full, or a kill came
        path.write_bytes(spoilt)
        count(path, 20, 2)
        assert json.loads(path.read_text()) == {"step": 20, "starts": 1}


@pytest.fixture
def preflight_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The script as a module, in a task that is given `variables` and sees `gpus`, which compute on the CPU here."""

    def make(gpus: int, **variables: str) -> Any:
        for name in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "SLURM_NNODES", "GLOO_SOCKET_IFNAME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ones = torch.ones
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
        return pipeline("preflight")

    return make


@pytest.mark.parametrize(
    ("visible", "gpus", "local", "found"),
    [
        ("0,1,2,3", 4, 3, 3),  # --gpus-per-node=4: all tasks see all
        ("2", 1, 2, 0),  # --gpus-per-task=1: each sees its own
        ("0,1,2,3", 3, 1, None),  # one is lost
        ("2", 0, 2, None),
        ("", 0, 0, None),
        ("0,1", 2, 2, 0),  # a third task: found by comparing GPUs
    ],
)
def test_a_task_has_the_gpus_that_slurm_shows_it(
    preflight_of: Callable[..., Any], visible: str, gpus: int, local: int, found: int | None
) -> None:
    module = preflight_of(gpus, SLURM_GPUS_ON_NODE="4", CUDA_VISIBLE_DEVICES=visible)
    if found is None:
        with pytest.raises(ValueError, match=r"Slurm gave this task \d GPUs?, torch \S+ sees \d"):
            module.check_device(local)
    else:
        assert module.check_device(local) == torch.device("cuda", found)


def sharing(arguments: list[str]) -> None:
    """Two ranks that find themselves on one GPU."""
    from cmdist.system import distributed

    apart = distributed.check_apart

    def check(world: distributed.World) -> None:
        torch.cuda.get_device_properties = lambda _: SimpleNamespace(uuid="GPU-7")  # type: ignore[assignment]
        apart(dataclasses.replace(world, device=torch.device("cuda", 0)))

    distributed.check_apart = check
    on_node("node7", 0, arguments)


def test_two_ranks_on_one_gpu_are_not_started_again(tmp_path: Path, digits: str) -> None:
    ranks = Ranks(2, tmp_path / "log", sharing, [write_config(tmp_path, digits)])
    assert ranks.join() == [2, 2]
    lines = [line for line in ranks.text.splitlines() if line.startswith("preflight:")]
    assert len(lines) == 1 and ": devices: ranks 0, 1 share one GPU (GPU-7), and NCCL needs one for each" in lines[0]


HERE, THERE = "127.0.1.1", "10.0.0.1"  # of a name in /etc/hosts as Debian writes it, and of another node


@pytest.mark.parametrize(
    ("addresses", "variables", "refused"),
    [
        ({"node2": [HERE], "node1": [THERE]}, {}, True),
        ({"node2": [], "node1": [THERE]}, {}, True),  # a name that nobody knows: gloo falls back to loopback
        ({"node2": [THERE], "node1": [THERE]}, {}, True),  # an address that this machine does not have: so too
        ({"node2": [HERE], "node1": [THERE]}, {"GLOO_SOCKET_IFNAME": "ib0"}, False),
        ({"node2": [HERE], "node1": ["127.0.0.1"]}, {}, False),  # all nodes are one machine
    ],
)
def test_a_host_name_at_loopback_names_the_variable_that_helps(
    preflight_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    addresses: dict[str, list[str]],
    variables: dict[str, str],
    refused: bool,
) -> None:
    module = preflight_of(0, MASTER_ADDR="node1", **variables)

    def resolve(name: str, *rest: Any, **more: Any) -> list[Any]:
        if not addresses[name]:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses[name]]

    monkeypatch.setattr(socket, "gethostname", lambda: "node2")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "ib0"), (3, "eth0")])
    if refused:
        with pytest.raises(ValueError, match=r"host name node2 gives gloo the loopback address.*GLOO_SOCKET_IFNAME"):
            module.check_host_name()
    else:
        module.check_host_name()


def test_a_node_of_several_looks_at_its_name(preflight_of: Callable[..., Any]) -> None:
    assert preflight_of(0, SLURM_NNODES="2").several_nodes(4) and not preflight_of(0, SLURM_NNODES="1").several_nodes(4)
    assert preflight_of(0, SLURM_NNODES="", LOCAL_WORLD_SIZE="2").several_nodes(4)


def on_a_node_at_loopback(arguments: list[str]) -> None:
    """Gloo between two nodes of which the second cannot be reached by its name."""
    module = pipeline("preflight")
    os.environ.update(SLURMD_NODENAME=f"node{os.environ['RANK']}", SLURM_NNODES="2", LOCAL_RANK="0")
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    second = os.environ["RANK"] == "1"
    module.at_loopback = lambda name: second and name == socket.gethostname()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preflight.py", *arguments])
        from cmdist.system import cli

        cli.run(module.main)


def test_a_node_at_loopback_is_not_started_again(tmp_path: Path, digits: str) -> None:
    ranks = Ranks(2, tmp_path / "log", on_a_node_at_loopback, [write_config(tmp_path, digits)])
    codes = ranks.join()
    assert 2 in codes, ranks.text
    assert "preflight: node1: host name: the host name " in ranks.text and "GLOO_SOCKET_IFNAME" in ranks.text
