"""What all tests share: one thread for each process, a small digits data set, and a way to start a command on several
ranks.
"""

import os

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

sys.path.insert(0, str(Path(__file__).parent))


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
