"""A file of TorchScript is trusted by its checksum, and runs in a process that can write nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import extractors, outside
from cmdist.evaluation.extractors import Files
from inception import trusting, write
from ranks import REPOSITORY, pipeline
from runs import call

CPU = torch.device("cpu")


class Writer(nn.Module):
    """Features, and one number more in a file of the folder."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = str(file)

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.file)
        return x.flatten(1)[:, :4]


class Dies(nn.Module):
    """Memory for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1:
            x = torch.zeros(1 << 40, 1 << 20)
        return x.flatten(1)[:, :4]


def dino(file: Path, network: nn.Module) -> Files:
    torch.jit.script(network).save(str(file))
    return Files(dinov2=str(file), trusted=[extractors.digest(file.read_bytes())])


def test_b5_the_features_of_the_process_are_those_of_this_one(tmp_path, children):
    """One process for both spaces of a file."""
    file = write(tmp_path / "inception-2015-12-05.pt")
    images = torch.randint(0, 256, (9, 3, 20, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    files = Files(file, trusted=[extractors.digest(Path(file).read_bytes())])
    outside = extractors.load(["fid_legacy", "fid"], None, files, CPU)
    assert len(children()) == 1
    names = ("space", "hash", "resize", "dimensions", "batch")
    for space, there in zip(("fid_legacy", "fid"), outside, strict=True):
        here = extractors.inception(tmp_path, file, space, CPU)
        assert [getattr(there, name) for name in names] == [getattr(here, name) for name in names]
        assert torch.equal(there.features(images[:2, :1]), here.features(images[:2, :1]))
    for ours, theirs in zip(
        extractors.inception(tmp_path, file, "fid_legacy", CPU).features_and_probabilities(images),
        outside[0].features_and_probabilities(images),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    del there, outside
    assert not children()


@pytest.mark.parametrize("option, space", [("--inception", "fid"), ("--dinov2", "fd_dinov2")])
def test_b5_a_file_is_trusted_by_its_checksum(tmp_path, option, space):
    file = write(tmp_path / "weights.pt")
    digest = extractors.digest(Path(file).read_bytes())
    evaluate = pipeline("evaluate")
    source = tmp_path / "statistics.npz"
    source.write_bytes(b"")
    arguments = [
        "reference",
        source,
        "--metrics",
        space,
        "--out",
        tmp_path / "o.npz",
        "--image-size",
        "8",
        option,
        file,
    ]
    for trust in ([], ["--trust", "sha256:" + 64 * "0"]):
        with pytest.raises(ConfigError, match=f"is TorchScript, a program that would run as you.*--trust {digest}"):
            call(evaluate.main, *arguments, *trust)
    other = write(tmp_path / "other.pt")
    Path(other).write_bytes(Path(other).read_bytes() + b"\0")
    with pytest.raises(ConfigError, match="other.pt is TorchScript"):
        call(evaluate.main, *arguments[:-1], other, *trusting(file)[2:])


def test_b5_a_file_that_writes_files_leaves_none(tmp_path):
    """It did before: the first call, which only asks for the number of features, was enough; torch is silent."""
    files = dino(tmp_path / "dino.pt", Writer(tmp_path / "planted"))
    (extractor,) = extractors.load(["fd_dinov2"], None, files, CPU)
    extractor.features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert not (tmp_path / "planted").exists()
    torch.jit.load(tmp_path / "dino.pt")(torch.zeros(1, 3, 8, 8))  # the test can see it
    assert (tmp_path / "planted").exists()


def test_b5_a_process_that_dies_is_named(tmp_path):
    (extractor,) = extractors.load(["fd_dinov2"], None, dino(tmp_path / "dino.pt", Dies()), CPU)
    assert extractor.features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 4)
    with pytest.raises(DataError, match="the process of the extractor of fd_dinov2 ended with exit code 1"):
        extractor.features(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    "attempt",
    [
        "open('new', 'w')", "open('old', 'a')", "os.truncate('old', 0)", "os.remove('old')", "os.rename('old', 'new')",
        "os.mkdir('new')", "os.symlink('old', 'new')", "os.link('old', 'new')", "os.mkfifo('new')",
        "subprocess.run(['true'])", "socket.create_connection(('127.0.0.1', PORT))",
    ],
)  # fmt: skip
def test_b5_what_gave_up_writing_changes_nothing_and_starts_nothing(tmp_path, attempt):
    (tmp_path / "old").write_text("old")
    program = f"""
import os, socket, subprocess
from cmdist.system import landlock
server = socket.create_server(("127.0.0.1", 0))
PORT = server.getsockname()[1]
if CONFINED:
    assert landlock.give_up_writing() and open('old').read() == 'old'
try:
    {attempt}
except OSError as error:
    print(type(error).__name__)
"""
    for confined in (True, False):
        ran = subprocess.run(
            [sys.executable, "-c", program.replace("CONFINED", str(confined))],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "PermissionError\n" if confined else "", "")
        if confined:
            assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


def test_b5_it_gets_no_secrets():
    variables = {"PATH": "a", "AWS_SECRET_ACCESS_KEY": "b", "HF_TOKEN": "c", "OMP_NUM_THREADS": "1", "db_password": "d"}
    assert outside._environment(variables) == {"PATH": "a", "OMP_NUM_THREADS": "1"}
