"""Extractors from a file of TorchScript, which is a program, in a process of their own that can write nothing.

`python -m cmdist.evaluation.outside PIPE` is that process. What it says is JSON and raw arrays: nothing of it is
executed here.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmdist.errors import CmdistError, ConfigError, DataError
from cmdist.evaluation import arithmetic
from cmdist.evaluation.extractor import Extractor
from cmdist.nets.inception import FILE
from cmdist.system import landlock, scratch

START = 300.0  # seconds for torch, the file and the device
SECRETS = ("AWS_", "KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")  # of names of variables that it does not get
_ERRORS = {error.__name__: error for error in (CmdistError, ConfigError, DataError)}


def extractors(loader: str, content: bytes, url: str, spaces: Sequence[str], device: torch.device) -> list[Extractor]:
    """What the function `loader` ("package.module:name") makes of a folder with `content` as FILE, the url, each space
    and the device, in a process that ends with the last of them. Raises what the function raises, and DataError.
    """
    names = " and ".join(spaces)
    ours, theirs = Pipe()
    with scratch.folder() as folder:
        (folder / FILE).write_bytes(content)
        process = subprocess.Popen(
            [sys.executable, "-m", "cmdist.evaluation.outside", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=_environment(os.environ),
        )
        theirs.close()
        pipe = _Pipe(ours, process, names)
        pipe.send({"loader": loader, "folder": str(folder), "url": url, "spaces": [*spaces], "device": str(device)})
        made = pipe.receive(START)
    if not made["confined"]:
        print(f"this kernel lets the extractor of {names} write files: it has no Landlock", file=sys.stderr)

    def compute(space: str, images: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        request = {"space": space, "shape": list(images.shape), "probabilities": probabilities}
        pipe.send(request, images.cpu().contiguous())
        answer = pipe.receive(None)
        arrays = [pipe.array(len(images), columns) for columns in answer["columns"]]
        return arrays[0], arrays[1]

    return [
        Extractor(space, m["hash"], m["resize"], m["dimensions"], partial(compute, space), m["batch"])
        for space, m in zip(spaces, made["extractors"], strict=True)
    ]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not any(part in name.upper() for part in SECRETS)}


class _Pipe:
    """This process's end. The other process ends with it."""

    def __init__(self, connection: Connection, process: "subprocess.Popen[bytes]", names: str) -> None:
        self._connection, self._process, self._names = connection, process, names
        weakref.finalize(self, _end, connection, process)

    def send(self, message: Mapping[str, Any], array: Tensor | None = None) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the answer will say
            self._connection.send_bytes(json.dumps(message).encode())
            if array is not None:
                self._connection.send_bytes(array.numpy().tobytes())

    def receive(self, seconds: float | None) -> dict[str, Any]:
        """Without a limit of seconds the evaluation's watchdog waits along. Raises what the other process met."""
        message: dict[str, Any] = json.loads(self._bytes(seconds))
        if "failure" in message:
            raise _ERRORS.get(message["failure"], CmdistError)(str(message["sentence"]))
        return message

    def array(self, rows: int, columns: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(bytearray(self._bytes(None)), np.float32).reshape(rows, columns))

    def _bytes(self, seconds: float | None) -> bytes:
        try:
            if not self._connection.poll(seconds):
                raise DataError(f"the extractor of {self._names} did not start within {seconds:.0f} s")
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            code = self._process.wait(10)
            raise DataError(f"the process of the extractor of {self._names} ended with exit code {code}") from error


def _end(connection: Connection, process: "subprocess.Popen[bytes]") -> None:
    connection.close()
    process.kill()
    process.wait(10)


def _serve(pipe: Connection) -> None:
    """What the process does until the other one is gone."""
    request = json.loads(pipe.recv_bytes())
    device = torch.device(request["device"])
    arithmetic.set_arithmetic()
    module, _, name = request["loader"].partition(":")
    load = getattr(importlib.import_module(module), name)  # imported before it may write no more
    confined = landlock.give_up_writing(["/dev"] if device.type == "cuda" else [])
    try:
        folder, url = Path(request["folder"]), request["url"]
        made: dict[str, Extractor] = {space: load(folder, url, space, device) for space in request["spaces"]}
        said = [
            {"hash": m.hash, "resize": m.resize, "dimensions": m.dimensions, "batch": m.batch} for m in made.values()
        ]
        pipe.send_bytes(json.dumps({"extractors": said, "confined": confined}).encode())
        while True:
            request = json.loads(pipe.recv_bytes())
            images = torch.frombuffer(bytearray(pipe.recv_bytes()), dtype=torch.uint8).view(request["shape"])
            answer = made[request["space"]].compute(images, request["probabilities"])
            pipe.send_bytes(json.dumps({"columns": [array.shape[1] for array in answer]}).encode())
            for array in answer:
                pipe.send_bytes(array.numpy().tobytes())
    except CmdistError as error:
        pipe.send_bytes(json.dumps({"failure": type(error).__name__, "sentence": str(error)}).encode())


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the other process is gone
        _serve(Connection(int(sys.argv[1])))
