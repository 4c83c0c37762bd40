from collections.abc import Iterator

import pytest
from slurm import Slurm, missing


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster of three nodes for all tests of this folder."""
    why = missing()
    if why:
        pytest.skip(why)
    cluster = Slurm(3)
    yield cluster
    cluster.stop()
