"""The shipped training script on a real Slurm: interrupted, it comes back by itself and nothing of the run shows it."""

import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from slurm import Job, Slurm, missing, until

from cmdist.checkpoints import search
from cmdist.tracking import mlflow as tracking
from cmdist.tracking.journal import Journal
from ranks import train
from servers import Rclone, environment
from training import OBJECTIVES, committed, files, write_config

STEPS, EVERY = 150, 30
COMMON = [*OBJECTIVES["ct"], f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}"]


pytestmark = pytest.mark.timeout(900)  # for machines on which others work, too


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Callable[..., dict[str, Any]]:
    """The files of the last step of a run that nobody interrupted, started without Slurm, on so many ranks."""
    made: dict[Any, dict[str, Any]] = {}

    def on(ranks: int, steps: int = STEPS) -> dict[str, Any]:
        if (ranks, steps) not in made:
            folder = tmp_path_factory.mktemp("straight")
            run = train(ranks, folder / "log", write_config(folder, digits), *COMMON, f"train.steps={steps}")
            assert run.join(240) == [0] * ranks, run.text
            made[ranks, steps] = files(folder / "runs" / "small", steps)
        return made[ranks, steps]

    return on


def submit(
    slurm: Slurm,
    folder: Path,
    digits: str,
    *overrides: str,
    nodes: int = 2,
    tasks: int = 1,
    options: tuple[str, ...] = (),
    **environment: str,
) -> Job:
    size = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1"]
    arguments = [write_config(folder, digits), *COMMON, *overrides]
    return Job(slurm, folder, "cluster/train_lsun.sbatch", arguments, [*size, *options], **environment)


def under_way(job: Job, step: int = EVERY) -> None:
    job.until(lambda: committed(job.folder / "runs" / "small", step))


def preempt(slurm: Slurm, job: Job) -> None:
    other = slurm.call(
        "sbatch", "--parsable", "-p", "high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"
    ).strip()
    job.until(lambda: int(job.show("Restarts")) >= 1)
    until(lambda: "JobState=COMPLETED" in slurm.call("scontrol", "-o", "show", "job", other))


def finishes_as(job: Job, expected: dict[str, Any]) -> None:
    assert job.until_over() == "COMPLETED", job.log
    assert files(job.folder / "runs" / "small", STEPS) == expected


def test_usr1_commits_requeues_and_loses_nothing(slurm: Slurm, tmp_path: Path, digits: str, straight: Any) -> None:
    job = submit(slurm, tmp_path, digits)
    under_way(job)
    job.signal_batch("USR1")
    job.until_requeued(1)
    assert "stopped by SIGUSR1 after step" in job.log
    finishes_as(job, straight(2))
    assert sorted(path.name for path in tmp_path.glob("logs/*/*.log")) == ["node1.log", "node2.log"]


def test_what_cannot_start_ends_at_once_and_is_not_requeued(slurm: Slurm, tmp_path: Path, digits: str) -> None:
    (tmp_path / "file").touch()
    for name in ("folder", "config", "bucket"):
        (tmp_path / name).mkdir()
    with Rclone(tmp_path / "store") as server:
        jobs = {
            "folder": submit(slurm, tmp_path / "folder", f"{tmp_path}/nodata", f"run.root={tmp_path}/file"),
            "config": submit(slurm, tmp_path / "config", digits, "train.stepz=3"),
            "bucket": submit(
                slurm, tmp_path / "bucket", digits, "run.root=s3://nobucket/runs", **environment(server.port)
            ),
        }
        for job in jobs.values():
            assert job.until_over() == "FAILED"
            assert job.show("ExitCode") == "2:0" and job.show("Restarts") == "0"
            assert "pre-flight ended with exit code 2: not started again" in job.log
    for node in ("node1", "node2"):
        assert f"preflight: {node}: data: there is no data set at {tmp_path}/nodata" in jobs["folder"].log
        assert f"preflight: {node}: run.root: " in jobs["folder"].log
    assert len(re.findall(r"preflight: node\d: config: .*train\.stepz", jobs["config"].log)) == 2
    assert (
        len(
            re.findall(r"preflight: node\d: run\.root: s3://nobucket/\S* the bucket does not exist", jobs["bucket"].log)
        )
        == 2
    )


@pytest.mark.slow
def test_a_teacher_may_train_on_while_its_distillation_is_requeued(slurm: Slurm, tmp_path: Path, digits: str) -> None:
    """The student's weights are those of a run that nobody interrupted, from the teacher as it was at the start."""
    edm = ["run.name=edm", "train.checkpoint_every=5", "train.keep_checkpoints=1", "optimizer.lr=0.01"]
    path, runs = write_config(tmp_path, digits), tmp_path / "runs"

    def teach(steps: int) -> None:
        teacher = train(1, tmp_path / "teacher.log", path, *edm, f"train.steps={steps}")
        assert teacher.join() == [0], teacher.text

    teach(5)
    overrides = [*OBJECTIVES["cd"], f"objective.teacher={runs}/edm", "init=teacher", "run.name=small"]
    straight = train(2, tmp_path / "straight.log", path, *COMMON, *overrides, "run.name=straight")
    assert straight.join(240) == [0, 0], straight.text
    job = submit(slurm, tmp_path, digits, *overrides)
    under_way(job)
    teach(15)
    assert search.steps(str(runs / "edm")) == [5, 15]  # 10 is thinned out, 5 is pinned
    slurm.call("scontrol", "requeue", job.id)
    job.until_requeued(1)
    finishes_as(job, files(runs / "straight", STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["requeue", "killed rank", "crash", "preempted", "preempted with grace"])
def test_interrupted_it_comes_back_by_itself(
    slurm: Slurm, tmp_path: Path, digits: str, straight: Any, how: str
) -> None:
    tasks = 2 if how == "requeue" else 1
    options = ("--partition=grace",) if how == "preempted with grace" else ()
    job = submit(slurm, tmp_path, digits, tasks=tasks, options=options)
    under_way(job)
    if how == "requeue":
        slurm.call("scontrol", "requeue", job.id)
    elif how == "killed rank":
        job.kill_rank(signal.SIGKILL)
    elif how == "crash":
        slurm.crash("node2")
    else:
        preempt(slurm, job)
    job.until_requeued(1)
    if how == "crash":
        job.until(lambda: "node3" in job.log)  # it goes on elsewhere
        slurm.boot("node2")
    finishes_as(job, straight(2 * tasks))
    if how == "preempted with grace":
        assert "stopped by SIGTERM after step" in job.log


@pytest.mark.slow
def test_a_rank_that_hangs_is_noticed(slurm: Slurm, tmp_path: Path, digits: str, straight: Any) -> None:
    job = submit(slurm, tmp_path, digits, "train.hang_minutes=0.3")
    under_way(job)
    job.kill_rank(signal.SIGSTOP)
    job.until_requeued(1)
    assert "Timeout (0:00:18)!" in job.log and "train_step" in job.log, job.log  # the stacks say where
    finishes_as(job, straight(2))


@pytest.mark.slow
def test_a_cut_off_attempt_is_fenced(tmp_path: Path, digits: str, straight: Any) -> None:
    """Its node is cut from the network but not from the run's folder, it wakes when the requeued job has gone on, and
    spoils nothing.
    """
    why = missing() or (
        None if shutil.which("ip") else "no `ip` here, so no networks of nodes (apt-get install iproute2)"
    )
    if why:
        pytest.skip(why)
    cluster, old = Slurm(2, network=True), []
    try:
        job = submit(cluster, tmp_path, digits, nodes=1, tasks=2)
        under_way(job)
        old, node = job.ranks(), job.show("NodeList")
        for rank in old:
            os.kill(rank, signal.SIGSTOP)
        before = search.steps(str(tmp_path / "runs" / "small"))
        cluster.cut(node)
        job.until_requeued(1)
        under_way(job, before[-1] + EVERY)
        assert job.show("NodeList") != node and set(old) <= set(job.ranks())
        for rank in old:
            os.kill(rank, signal.SIGCONT)
        until(lambda: not any(map(running, old)), 120, lambda: job.log)
        assert "attempt 1 ends here and commits nothing more" in job.log
        finishes_as(job, straight(2))
        folders = sorted(
            path.name for path in (tmp_path / "runs" / "small" / "checkpoints").iterdir() if (path / "COMMIT").exists()
        )
        assert folders == [
            f"step-{step:010d}-{1 if step in before else 2:04d}" for step in range(EVERY, STEPS + 1, EVERY)
        ]
    finally:
        cluster.stop()


def running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_on_another_number_of_nodes_the_losses_go_on(slurm: Slurm, tmp_path: Path, digits: str) -> None:
    tracked = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "train.log_every=1"]
    whole = train(2, tmp_path / "log", write_config(tmp_path, digits), *COMMON, *tracked, "run.name=whole")
    assert whole.join(240) == [0, 0], whole.text
    job = submit(slurm, tmp_path, digits, *tracked)
    under_way(job)
    job.signal_batch("USR1")
    job.until(lambda: job.state == "PENDING")
    slurm.call("scancel", job.id)
    job = submit(slurm, tmp_path, digits, *tracked, nodes=1)
    assert job.until_over() == "COMPLETED", job.log
    assert "ranks        1 on cpu" in job.log and "(was 2, ZeRO 1)" in job.log
    losses = [logged(tmp_path / "runs" / name) for name in ("whole", "small")]
    assert sorted(losses[0]) == sorted(losses[1]) == list(range(1, STEPS + 1))
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=1e-5), step


def logged(run: Path) -> dict[int, float]:
    """Losses by step, as the run noted them."""
    records = [record for record, _ in Journal(tracking.spool_folder(str(run))).read()]
    return {record["step"]: record["values"]["loss"] for record in records if "loss" in record.get("values", {})}


@pytest.mark.slow
def test_scancel_ends_it_with_a_commit(slurm: Slurm, tmp_path: Path, digits: str) -> None:
    job = submit(slurm, tmp_path, digits, "train.steps=100000")
    under_way(job)
    slurm.call("scancel", job.id)
    assert job.until_over() == "CANCELLED"
    assert "after step" in job.log and "requeued" not in job.log.replace("not requeued", ""), job.log
    assert job.show("Restarts") == "0"


@pytest.mark.slow
def test_restarts_without_progress_come_to_an_end(slurm: Slurm, tmp_path: Path, digits: str) -> None:
    """What pre-flight does not see: damage inside the shards."""
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    for shard in sorted(data.glob("*.tar"))[1:]:
        shard.write_bytes(bytes(shard.stat().st_size))
    job = submit(slurm, tmp_path, str(data), MAX_RESTARTS="1")
    job.until_requeued(1)
    assert job.until_over() == "FAILED"
    assert "1 restarts in a row have committed nothing beyond step 0" in job.log
    assert "pre-flight ended with exit code 2: not started again" in job.log


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_time_limit(slurm: Slurm, tmp_path: Path, digits: str) -> None:
    """Slurm looks at limits every 30 s and counts in minutes, so this takes that long."""
    job = submit(slurm, tmp_path, digits, "train.steps=100000", options=("--time=3", "--signal=B:USR1@100"))
    job.until(lambda: "USR1: the ranks finish their step and commit" in job.log)
    job.until(lambda: job.show("Restarts") == "1", 100)
    assert "stopped by SIGUSR1 after step" in job.log
    slurm.call("scancel", job.id)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_random_interruptions(slurm: Slurm, tmp_path: Path, digits: str, straight: Any) -> None:
    draw, steps = random.Random(7), 1000
    job = submit(slurm, tmp_path, digits, f"train.steps={steps}", "train.checkpoint_every=10", MAX_RESTARTS="10")
    for number in range(10):
        before, begun = newest(job), f"start {number}: 2 ranks"
        job.until(lambda: begun in job.log and len(job.ranks()) == 2)  # noqa: B023
        if draw.random() < 0.7:  # else before the first step
            job.until(lambda: newest(job) > before)  # noqa: B023
        how = draw.choice(["USR1", "requeue", "kill"])
        if how == "USR1":
            job.signal_batch("USR1")
        elif how == "requeue":
            slurm.call("scontrol", "requeue", job.id)
        else:
            os.kill(draw.choice(sorted(job.ranks())), signal.SIGKILL)
        job.until_requeued(number + 1)
    assert job.until_over() == "COMPLETED", job.log
    assert int(job.show("Restarts")) >= 10
    assert files(job.folder / "runs" / "small", steps) == straight(2, steps)


def newest(job: Job) -> int:
    """The newest committed step of a job's run, 0 if there is none."""
    return max(search.steps(str(job.folder / "runs" / "small")), default=0)
