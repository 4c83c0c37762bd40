"""Mistyped arguments leave no folder, database or lock behind: nothing is made before it is known to be right."""

from pathlib import Path

import pytest

from cmdist.errors import CmdistError
from ranks import pipeline
from runs import call, make_data, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder, "ct", make_data(folder / "data"))


def everything(*folders: Path) -> dict[Path, bytes | None]:
    return {
        path: path.read_bytes() if path.is_file() else None for folder in folders for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("glance", "HERE/nowhere --checkpoint 10"),
        ("glance", "RUN --checkpoint 11"),
        ("glance", "RUN --checkpoint -1"),
        ("compare", "HERE/nowhere"),
        ("compare", "RUN HERE/nowhere"),
        ("compare", "--experiment tests"),
        ("compare", "--experiment tests --uri sqlite:///HERE/none.db"),
        ("compare", "--experiment tests --uri HERE"),
        ("compare", "--experiment nobody --uri sqlite:///ROOT/mlflow.db"),
        ("checkpoints", "copy HERE/nowhere HERE/copy"),
        ("checkpoints", "copy RUN RUN"),
        ("checkpoints", "copy RUN/checkpoints/step-7 HERE/copy"),
        ("checkpoints", "move HERE/nowhere HERE/moved"),
        ("checkpoints", "thin HERE/nowhere"),
        ("checkpoints", "verify RUN --step 7"),
        ("evaluate", "HERE/nowhere"),
        ("evaluate", "RUN --checkpoint 7"),
        ("search_times", "RUN --metric psnr"),
        ("export", "RUN --out HERE/out --ema 0.123"),
        ("sample", "RUN --out HERE/out/a.png --steps 9"),
        ("edit", "inpaint RUN HERE/none.png --mask centre --out HERE/out"),
    ],
)
def test_a_mistyped_argument_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = everything(tmp_path, run.parent)
    places = {"HERE": str(tmp_path), "RUN": str(run), "ROOT": str(run.parent)}
    for name, place in places.items():
        arguments = arguments.replace(name, place)
    with pytest.raises((CmdistError, SystemExit)):
        call(pipeline(command).main, *arguments.split())
    assert everything(tmp_path, run.parent) == before
