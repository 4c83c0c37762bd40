"""Each thing that would stop a run is one line that names the node, and an exit code that says whether to try again."""

import json
import os
from pathlib import Path

import pytest

from cmdist import config as configuration
from cmdist import runs
from cmdist.system import storage
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
        ("device of rank 0: ", "Slurm gave this node 4 GPUs, torch"),
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
    pipeline("preflight").check_data(config)
    storage.remove("memory://shards/shard-000005.tar")
    with pytest.raises(ValueError, match=r"memory://shards lacks 1 of 6 shards, the first is shard-000005.tar"):
        pipeline("preflight").check_data(config)


def test_a_lost_gpu_may_be_another_node_next_time(tmp_path: Path, digits: str) -> None:
    codes, lines = preflight(tmp_path, write_config(tmp_path, digits), gpus=1)
    assert codes == [1, 1]
    assert len(lines) == 1 and ": device of rank 0: Slurm gave this node 1 GPUs" in lines[0]


def test_weights_and_starts_that_are_not_there(tmp_path: Path, digits: str) -> None:
    text = SMALL.replace("objective: denoising", "objective: consistency_distillation")
    text = text.replace(
        "tracking:", "loss: {distance: lpips, lpips_weights: nowhere/vgg.pth}\nteacher: nowhere/edm.pt\ntracking:"
    )
    text = text.replace("channels: 1, classes: 10", "channels: 3")
    config = configuration.load(write_config(tmp_path, digits, text), [])
    with pytest.raises(ValueError, match=r"teacher nowhere/edm.pt is not there"):
        runs.check_weights(config, str(tmp_path / "run"), "auto")
    with pytest.raises(ValueError, match=r"loss.lpips_weights nowhere/vgg.pth is not there"):
        runs.check_weights(config.model_copy(update={"teacher": "exact"}), str(tmp_path / "run"), "auto")
    with pytest.raises(ValueError, match=r"init nowhere/init.safetensors is not there"):
        runs.check_weights(
            config.model_copy(update={"teacher": "exact", "init": "nowhere/init.safetensors"}),
            str(tmp_path / "run"),
            "auto",
        )


def test_what_a_run_does_not_use_is_not_missed(tmp_path: Path, digits: str) -> None:
    config = configuration.load(write_config(tmp_path, digits), [])
    loss = config.loss.model_copy(update={"lpips_weights": "nowhere/vgg.pth"})
    runs.check_weights(
        config.model_copy(update={"teacher": "nowhere/edm.pt", "loss": loss}), str(tmp_path / "run"), "auto"
    )
    training = config.model_copy(
        update={"objective": "consistency_training", "teacher": "nowhere/edm.pt", "init": "teacher"}
    )
    with pytest.raises(ValueError, match=r"teacher nowhere/edm.pt is not there"):
        runs.check_weights(training, str(tmp_path / "run"), "auto")
    storage.write(f"{tmp_path}/run/run.json", b"{}")
    runs.check_weights(training, str(tmp_path / "run"), "auto")


def test_a_teacher_of_the_wrong_kind_is_found_before_anything_starts(tmp_path: Path, digits: str) -> None:
    (tmp_path / "cd_x.pt").write_bytes(b"")
    config = configuration.load(write_config(tmp_path, digits), [])
    config = config.model_copy(update={"objective": "consistency_distillation", "teacher": f"{tmp_path}/cd_x.pt"})
    with pytest.raises(ValueError, match=r"cd_x\.pt is a consistency model by its name, and a denoiser is needed here"):
        runs.check_weights(config, str(tmp_path / "run"), "auto")
    start = config.model_copy(update={"objective": "consistency_training", "init": "teacher"})
    runs.check_weights(start, str(tmp_path / "run"), "auto")


def test_a_run_that_has_begun_needs_its_start_no_more(tmp_path: Path, digits: str) -> None:
    config = configuration.load(write_config(tmp_path, digits), []).model_copy(
        update={"init": "nowhere/init.safetensors"}
    )
    with pytest.raises(ValueError, match=r"init nowhere/init.safetensors is not there"):
        runs.check_weights(config, str(tmp_path / "run"), "none")
    runs.check_weights(config, str(tmp_path / "run"), "s3://bucket/another")
    storage.write(f"{tmp_path}/run/run.json", b"{}")
    runs.check_weights(config, str(tmp_path / "run"), "auto")


def test_a_start_that_is_not_there(tmp_path: Path, digits: str) -> None:
    codes, lines = preflight(tmp_path, write_config(tmp_path, digits), "--resume", f"{tmp_path}/other")
    assert codes == [2, 2]
    assert len(lines) == 1 and lines[0].startswith(f"preflight: node7: --resume: {tmp_path}/other")


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
    (tmp_path / "preflight-0").touch()
    with pytest.raises(ValueError, match=r"does not show what the node of rank 8 has written"):
        pipeline("preflight").check_shared(str(tmp_path), [0, 8])


def test_starts_without_progress_are_counted(tmp_path: Path) -> None:
    count, path = pipeline("preflight").count_start, tmp_path / "starts.json"
    for step in (0, 0, 0, 10, 10, 10):
        count(path, step, 2)
    with pytest.raises(ValueError, match=r"2 restarts in a row have committed nothing beyond step 10"):
        count(path, 10, 2)
    count(path, 20, 2)
    assert json.loads(path.read_text()) == {"step": 20, "starts": 1}
