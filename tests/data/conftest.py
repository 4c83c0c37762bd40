import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cmdist.data.images import open_dataset
from cmdist.data.preparing.shards import write_dataset
from conftest_data import numbered


@pytest.fixture
def dataset(tmp_path):
    """50 images of 4x4 in 5 shards of 10; never kept decoded, so that each read reaches the disk."""
    url = str(tmp_path / "set")
    write_dataset(url, numbered(50), per_shard=10)
    return open_dataset(url, memory=0)
