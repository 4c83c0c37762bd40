"""What all tests share: one thread for each process, a small digits data set, and a way to start a command on several
ranks.
"""

import gc
import os

gc.disable()  # until all is imported and collected: a fifth of that time

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_num_threads(1)

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

LONGEST = """
multiprocess/test_evaluate_inception multiprocess/test_rows multiprocess/test_resume pipelines/test_demo
pipelines/test_recipe_runs multiprocess/test_ranks test_recipe test_plan cluster/test_train multiprocess/test_patience
multiprocess/test_launchers pipelines/test_prepare_data pipelines/test_benchmark_train multiprocess/test_start
"""  # in order; `--dist loadfile` hands out files in the order of collection


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker begins one when the others have no more."""
    order = {(TESTS / name).with_suffix(".py"): place for place, name in enumerate(LONGEST.split())}
    assert not (gone := [path for path in order if not path.exists()]), gone
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real digits in shards of 300, without the extractor."""
    from cmdist.data.preparing.shards import write_dataset
    from cmdist.data.preparing.sources.digits import digits as source

    url = str(tmp_path_factory.mktemp("digits"))
    write_dataset(url, source(), per_shard=300)
    return url


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """The processes that the test started and that are still there; servers that serve several tests are older."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [process for process in psutil.Process().children(recursive=True) if process not in before]
