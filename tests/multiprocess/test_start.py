"""What the ranks of a real run ask of the store and the shared disk until the first step, and what they tell each
other.
"""

import json
import os
import pickle
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cmdist import build, config
from ranks import REPOSITORY, Ranks, pipeline
from training import CD, committed, write_config

NODE = 2  # ranks of a node


def counted(record: str, arguments: list[str]) -> None:
    """pipelines/train.py as on nodes of two ranks; writes down what was asked for before the first step, and more."""
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = str(rank % NODE)
    open_now = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 12, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    from cmdist.checkpoints import checkpoint
    from cmdist.checkpoints.saver import Saver
    from cmdist.nets import released
    from cmdist.system import storage
    from cmdist.train.trainer import Trainer

    checkpoint.BLOCK = 64  # so that the checksums of an average's blocks are many
    told: dict[str, Any] = {"asked": [], "written": [], "largest": 0}
    plain, read, fit, gather = storage._try, released.read, Trainer.fit, torch.distributed.all_gather_object
    write = Saver._write

    def asking(url: str, action: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and "before" not in told:
            told["asked"].append(url)
        return plain(url, action)

    def reading(url: str, *rest: Any) -> Any:
        told["asked"].append(url)
        return read(url, *rest)

    def sending(values: Any, value: Any, **rest: Any) -> None:
        told["largest"] = max(told["largest"], len(pickle.dumps(value)))
        gather(values, value, **rest)

    def writing(self: Saver, url: str, files: Any, name: str, parts: Any) -> None:
        told["written"].append(name)
        write(self, url, files, name, parts)

    def fitting(self: Trainer) -> bool:
        told["before"] = True
        told["open"] = len(os.listdir("/proc/self/fd")) - open_now
        told["teacher"] = {n: v.tolist() for n, v in self.networks.teacher.net.state_dict().items()}  # type: ignore
        told["student"] = {n: v.tolist() for n, v in self.engine.module.state_dict().items()}
        return fit(self)

    storage._try, released.read, Trainer.fit = asking, reading, fitting  # type: ignore[assignment,method-assign]
    torch.distributed.all_gather_object, Saver._write = sending, writing  # type: ignore[assignment,method-assign]
    pipeline("train").main(arguments)
    Path(f"{record}-{rank}.json").write_text(json.dumps(told))


def test_what_a_start_asks_does_not_grow_with_the_ranks(tmp_path: Path, digits: str) -> None:
    """Index, teacher and start are read by rank 0 alone, shards looked at by one rank of a node; a resume adds each
    rank's own part.
    """
    settings = write_config(tmp_path, digits)
    made = config.load(settings)
    torch.manual_seed(3)
    weights = {name: torch.randn_like(value) * 0.05 for name, value in build.network(made).state_dict().items()}
    teacher = tmp_path / "edm_small.pt"
    torch.save(weights, teacher)
    shards = len(json.loads(Path(digits, "index.json").read_text())["shards"])

    def start(size: int, name: str, steps: int) -> list[dict[str, Any]]:
        record = tmp_path / f"{name}-{steps}"
        more = [*CD, f"objective.teacher={teacher}", "init=teacher", f"run.name={name}", f"train.steps={steps}"]
        more.append("network.norm_groups=by_width")
        ranks = Ranks(size, tmp_path / f"{record.name}.log", counted, str(record), [settings, *more])
        assert ranks.join(240) == [0] * size, ranks.text
        return [json.loads(Path(f"{record}-{rank}.json").read_text()) for rank in range(size)]

    two, four = start(2, "two", 2), start(4, "four", 2)
    for found in (two, four):
        for rank, told in enumerate(found):
            for who in ("teacher", "student"):
                assert all(torch.equal(torch.tensor(told[who][n]), value) for n, value in weights.items()), (rank, who)
            assert told["largest"] < 1000, "nobody sends all ranks what only one needs"
        asked = found[0]["asked"].count(str(teacher))
        assert asked == 1 + 1 + 1, "looked for, pinned by its checksum, and read once for the start and the teacher"
        # before there is a group, and for all ranks
        assert len([url for url in found[0]["asked"] if url.endswith("index.npz")]) == 2
        assert found[1]["asked"] == []
    assert [len(told["asked"]) for told in four[1:]] == [0, shards, 0]
    assert all(url.endswith(".tar") for url in four[2]["asked"])
    assert len(four[0]["asked"]) == len(two[0]["asked"])
    averages = [[name for name in told["written"] if name.startswith("ema-")] for told in four]
    assert averages == [["ema-0.9.safetensors"], [], ["ema-0.99.safetensors"], []], "one on each node"
    assert four[0]["open"] > 12, "more than the soft limit that the process was given"

    resumed = start(4, "four", 4)
    assert committed(tmp_path / "runs" / "four", 4)
    for told in resumed[1:]:
        own = [url for url in told["asked"] if not url.endswith(".tar")]
        assert all("/slices-" in url or "/ema-" in url for url in own)
        assert len(own) <= 2 * (2 * 4 + 2), "of four vectors two slices and of two averages, a little more at the load"


def test_a_run_imports_nothing_large_that_it_does_not_use(tmp_path: Path, digits: str) -> None:
    """Among them torch's compiler, which takes as long as all the rest, and which DeepSpeed would import."""
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print('imported', *(n for n in ('torch._dynamo', 'sympy', 'mlflow', 'sklearn', 'matplotlib', 'scipy', 's3fs')"
        " if n in sys.modules))"
    )
    arguments = ["pipelines/train.py", write_config(tmp_path, digits), "train.steps=1", "optimizer.kind=radam"]
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "imported", done.stdout + done.stderr
    assert committed(tmp_path / "runs" / "small", 1)


def test_the_courier_of_a_run_starts_before_torch_is_imported() -> None:
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "from cmdist.tracking import journal\n"
        "def starting(self, store): sys.exit(store + ', torch: ' + str('torch' in sys.modules))\n"
        "journal.Courier.__init__ = starting\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", script, "pipelines/train.py", "configs/digits/cd.yaml", "tracking.uri=sqlite:///a"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "sqlite, torch: False\n"


@pytest.mark.parametrize("option", ["--help", "--dry-run", "--plan"])
def test_what_only_looks_at_a_configuration_imports_nothing_that_trains_or_tracks(option: str) -> None:
    """--help not even torch."""
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('imported', *(n for n in ('deepspeed', 'mlflow', 'lpips', 'torchvision', 'webdataset', 'sklearn',"
        f" 'matplotlib', 'scipy', 's3fs', 'cleanfid', {'torch' * (option == '--help')!r}) if n in sys.modules))"
    )
    command = [sys.executable, "-c", script, "pipelines/train.py", "configs/digits/cd.yaml", option]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "imported", done.stdout + done.stderr


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_of_a_run_wait_asleep_unless_the_environment_says_otherwise(given: str | None) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = clean | {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": given} if given else {})
    command = [sys.executable, "pipelines/train.py", "configs/digits/ct.yaml", "--dry-run"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"OMP_WAIT_POLICY = '{given or 'PASSIVE'}'" in done.stderr
