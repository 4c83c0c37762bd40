"""Real S3 servers for the tests, on free ports of the loopback device, with their data below a folder of the test."""

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from ranks import free_port

KEY, SECRET = "TESTKEY0123456789AB", secrets.token_hex(20)


def environment(port: int, secret: str = SECRET) -> dict[str, str]:
    """The variables with which a process reaches a server: the only place where credentials are."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    """Until somebody listens."""
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} does not listen on {port}"
        time.sleep(0.02)


class Rclone:
    """`rclone serve s3` on a folder: signatures are checked, data are on the disk, conditions of puts are ignored."""

    program = Path(sys.executable).parent / "rclone"

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "bucket").mkdir(parents=True)
        self.start()

    def start(self) -> None:
        """Start, or start again after `kill`, on the same port and data."""
        command = [
            self.program,
            "serve",
            "s3",
            "--addr",
            f"127.0.0.1:{self.port}",
            "--auth-key",
            f"{KEY},{SECRET}",
            "--vfs-cache-mode",
            "off",
        ]
        config = {"RCLONE_CONFIG": os.devnull}
        with open(self.folder.parent / f"{self.folder.name}.log", "ab") as log:
            self.process = subprocess.Popen([*command, self.folder], stdout=log, stderr=log, env=os.environ | config)
        wait_for(self.port, self.process)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Rclone":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
