"""What evaluations leave is read by its shape: a damaged file is named, and does not stand in the way of the others."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmdist.errors import DataError, FormatError
from cmdist.evaluation import pictures, references, stored
from cmdist.evaluation.extractor import inside
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.metrics.frechet import Statistics

FORMAT_3 = Path(__file__).parents[1] / "fixtures" / "format-3" / "runs" / "cd" / "evaluations"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in FORMAT_3.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


DAMAGES: tuple[Any, ...] = (
    b"", b"{", b"[]", b"\xff\xfe", b"null", {"metrics": 3}, {"metrics": {"fd_1step": "x"}}, {"protocol": []},
    {"protocol": {"n": "many", "space": "fd"}}, {"step": -1}, {"step": "4"}, {"stem": None}, {"sampling": "heun"},
    {"checkpoint": {}}, {"time": 2**70},
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=[str(damage)[:40] for damage in DAMAGES])
def test_a_damaged_record_is_named_and_the_others_are_read(
    folder: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(folder.glob("*.json"))
    whole = json.loads(second.read_text())
    second.write_bytes(damage if isinstance(damage, bytes) else json.dumps(whole | damage).encode())
    assert [name for name, _ in stored.records(str(folder))] == [first.name]
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {second} is damaged: ") and said.count("\n") == 1
    assert "remove it, and the same evaluation makes it again" in said


def test_a_record_of_a_newer_format_is_refused(folder: Path) -> None:
    path = min(folder.glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(FormatError, match=f"{path} is a record of an evaluation of format 99"):
        stored.records(str(folder))


def test_a_glance_and_scores_that_are_damaged_are_made_again_or_left_out(tmp_path: Path, capsys: Any) -> None:
    for content in ("", "[]", '{"weights": 3}'):
        (tmp_path / "step.json").write_text(content)
        assert stored.seen(f"{tmp_path}/step.json") is None
    assert stored.seen(f"{tmp_path}/none.json") is None
    (tmp_path / "references-n5-seed0.json").write_text('{"bootstrap": "x"}')
    assert stored.scores(str(tmp_path)) == []
    assert "references-n5-seed0.json is damaged: extractor is missing" in capsys.readouterr().err


def grid(**changes: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **({"images": np.zeros((4, 1, 2, 2), np.uint8), "columns": np.int64(2)} | changes))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", grid()[:-30], grid(images=np.zeros((4, 2, 2, 2), np.uint8)), grid(images=np.zeros(3, np.uint8)),
     grid(images=np.zeros((4, 1, 2, 2))), grid(columns=np.int64(0)), grid(columns=np.array([1, 2])),
     grid(images=np.array([{}], dtype=object)), grid(images=np.zeros((0, 1, 2, 2), np.uint8))],
)  # fmt: skip
def test_damaged_pictures_are_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz is damaged: "):
        pictures.read(f"{tmp_path}/a")


def saved(folder: Path) -> tuple[Path, Extractor]:
    """Statistics of four features, and the extractor that they are of."""
    network = torch.nn.Identity()
    extractor = Extractor("fd", "hash", "none", 4, inside("fd", lambda images: images, network))
    described = references.describe(extractor) | {"image_size": 8}
    mean, covariance = torch.arange(4.0).double(), torch.eye(4).double()
    references.Reference(Statistics(100, mean, covariance), torch.ones(6, 4), described).save(f"{folder}/s.npz")
    return folder / "s.npz", extractor


DESCRIBED = {"space": "fd", "extractor": "hash", "resize": "none", "image_size": 8}
WRONG: dict[str, Any] = {
    "another number": {"mean": np.array([0.0, 1.0, 2.0, 4.0])},
    "not finite": {"covariance": np.full((4, 4), np.nan)},
    "another shape": {"mean": np.zeros(5)},
    "whole numbers": {"covariance": np.eye(4, dtype=int)},
    "half": {"mean": np.zeros(4, np.float32)},
    "objects": {"mean": np.array([{}], dtype=object)},
    "no count": {"n": np.array("x")},
    "features": {"features": np.zeros((6, 3), np.float32)},
    "described": {"described": np.array("[]")},
    "described by a number": {"described": np.array(json.dumps(DESCRIBED | {"image_size": "8"}))},
}


@pytest.mark.parametrize("damage", WRONG)
def test_damaged_statistics_are_refused(tmp_path: Path, damage: str) -> None:
    path, extractor = saved(tmp_path)
    assert references.load(str(path), extractor, 8).statistics.n == 100
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | WRONG[damage]))
    with pytest.raises(DataError, match=r"s\.npz is .*damaged"):
        references.load(str(path), extractor, 8)


@pytest.mark.parametrize("images", [np.zeros((4, 8, 8)), np.zeros((4, 8, 8, 2), np.uint8), np.zeros((4, 8), np.uint8)])
def test_published_statistics_with_images_of_another_kind_are_refused(tmp_path: Path, images: Any) -> None:
    _, extractor = saved(tmp_path)
    np.savez(tmp_path / "adm.npz", mu=np.zeros(4), sigma=np.eye(4), arr_0=images)
    with pytest.raises(DataError, match="uint8 images NHWC are needed"):
        references.load(f"{tmp_path}/adm.npz", extractor, 8)
