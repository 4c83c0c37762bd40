"""A real S3 server for all tests of this folder, and its variables in the environment of each."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

sys.path.insert(0, str(Path(__file__).parent))

from servers import Rclone, environment


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rclone]:
    """One for the whole session; a test that kills its server starts its own."""
    with Rclone(tmp_path_factory.mktemp("s3") / "data") as running:
        yield running


@pytest.fixture
def s3(server: Rclone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of this test on the server."""
    for name, value in environment(server.port).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # those of another test know another server
    return f"s3://bucket/{tmp_path.name}"
