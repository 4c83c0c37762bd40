"""Half precision: the loss scale changes no step that it does not have to, and a skipped attempt advances nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmdist.checkpoints import search
from ranks import Ranks, pipeline, run_pipeline, train
from training import OBJECTIVES, SMALL, files, vectors, write_config

FP16 = SMALL.replace("precision: fp32", "precision: fp16")


def overflowing(record: str, arguments: list[str]) -> None:
    """pipelines/train.py, whose loss is too large for the scale at the first two attempts at step 2."""
    from cmdist.train.trainer import Trainer

    losses, attempts = Trainer._losses, [0]

    def inflated(self: Trainer, batch: Any, *rest: Any) -> Any:
        draw, loss = losses(self, batch, *rest)
        if self.step == 2 and self.engine.loss_scale.value > 2.0**14:
            attempts[0] += 1
            loss = replace(loss, minimised=loss.minimised * float("inf"))
        return draw, loss

    Trainer._losses = inflated  # type: ignore[method-assign]
    pipeline("train").main(arguments)
    Path(record).write_text(str(attempts[0]))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_skipped_step_advances_nothing(tmp_path: Path, digits: str, stage: int) -> None:
    config = write_config(tmp_path, digits, FP16)
    common = [*OBJECTIVES["ct"], f"train.zero_stage={stage}", "train.steps=4", "train.loss_scale=65536"]
    straight = train(1, tmp_path / "a.log", config, "run.name=straight", *common)
    assert straight.join() == [0], straight.text
    skipped = Ranks(
        1, tmp_path / "b.log", overflowing, str(tmp_path / "attempts"), [config, "run.name=skipped", *common]
    )
    assert skipped.join() == [0], skipped.text
    assert (tmp_path / "attempts").read_text() == "8"  # two attempts of four micro-batches
    for name, value in (("straight", 2.0**16), ("skipped", 2.0**14)):
        state = search.open_checkpoint(str(tmp_path / "runs" / name), 4).state
        assert state["optimizer_step"] == 4
        assert state["loss_scale"]["value"] == value
    for kind, vector in vectors(
        tmp_path / "runs" / "skipped", 4
    ).items():  # another scale rounds other subnormals, no more
        torch.testing.assert_close(vector, vectors(tmp_path / "runs" / "straight", 4)[kind], rtol=2e-3, atol=2e-6)


def test_fp16_resumes_bit_for_bit_with_its_scale(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits, FP16)
    common = [f"train.loss_scale={2.0**25}"]  # far too large: the first step has to find the scale
    straight = train(2, tmp_path / "a.log", config, "run.name=straight", *common, "train.steps=6")
    assert straight.join() == [0, 0], straight.text
    for steps in (3, 6):
        part = train(2, tmp_path / f"{steps}.log", config, "run.name=parts", *common, f"train.steps={steps}")
        assert part.join() == [0, 0], part.text
    state = search.open_checkpoint(str(tmp_path / "runs" / "parts"), 6).state
    assert state["loss_scale"]["value"] < 2.0**25
    assert files(tmp_path / "runs" / "parts", 6) == files(tmp_path / "runs" / "straight", 6)


def test_all_precisions_train_alike(tmp_path: Path, digits: str) -> None:
    config = write_config(tmp_path, digits)
    for precision in ("fp32", "fp16", "bf16"):
        run = train(
            1,
            tmp_path / f"{precision}.log",
            config,
            f"run.name={precision}",
            f"train.precision={precision}",
            "train.steps=8",
        )
        assert run.join() == [0], run.text
    full, *others = (vectors(tmp_path / "runs" / name, 8)["exp_avg"] for name in ("fp32", "fp16", "bf16"))
    for half, limit in zip(others, (0.02, 0.1), strict=True):
        assert 0 < float((half - full).norm() / full.norm()) < limit


def not_finite(step: int, arguments: list[str]) -> None:
    """pipelines/train.py, in which one image of the last rank has a loss that is not a number at a step and at sigma
    7.25, and from there on weights that are not, at sigma 1.
    """
    from cmdist.train.trainer import Trainer

    losses = Trainer._losses

    def spoilt(self: Trainer, batch: Any, *rest: Any) -> Any:
        draw, loss = losses(self, batch, *rest)
        if self.step != step or self.world.rank != self.world.size - 1:
            return replace(draw, sigma=torch.ones_like(draw.sigma)), loss
        spoil = torch.arange(len(draw.sigma)) == 2
        minimised = loss.minimised * torch.where(spoil, float("nan"), 1.0)
        return replace(draw, sigma=torch.where(spoil, 7.25, draw.sigma)), replace(loss, minimised=minimised)

    Trainer._losses = spoilt  # type: ignore[method-assign]
    run_pipeline("train", arguments)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_gradient_that_is_not_finite_ends_the_run_at_once_where_no_scale_is_to_blame(
    tmp_path: Path, digits: str, stage: int
) -> None:
    config = write_config(tmp_path, digits)
    ranks = 1 + stage
    run = Ranks(ranks, tmp_path / "log", not_finite, 1, [config, f"train.zero_stage={stage}", "train.steps=3"])
    assert run.join() == [1] * ranks
    says = "error: step 1: the gradient was not finite (attempts: 1), first at sigma 7.25; loss nan, lower optimizer.lr"
    assert says in run.text
    assert "Traceback" not in run.text


def blind(step: int, value: float, arguments: list[str]) -> None:
    """pipelines/train.py, whose loss is not finite at a step though its gradient is, as with a constant beyond fp32."""
    from cmdist.train.trainer import Trainer

    losses = Trainer._losses

    def spoilt(self: Trainer, batch: Any, *rest: Any) -> Any:
        draw, loss = losses(self, batch, *rest)
        return draw, replace(loss, minimised=loss.minimised + value) if self.step == step else loss

    Trainer._losses = spoilt  # type: ignore[method-assign]
    run_pipeline("train", arguments)


@pytest.mark.parametrize(("precision", "value"), [("fp32", float("nan")), ("fp16", float("inf"))])
def test_a3_a_loss_that_is_not_finite_is_never_committed(
    tmp_path: Path, digits: str, precision: str, value: float
) -> None:
    options = [f"train.precision={precision}", "train.steps=3", "train.log_every=1", "train.checkpoint_every=3"]
    run = Ranks(1, tmp_path / "log", blind, 1, value, [write_config(tmp_path, digits), *options])
    assert run.join() == [1], run.text
    assert "a loss up to here was not finite" in run.text and "Traceback" not in run.text
    assert not list(tmp_path.rglob("COMMIT"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_start_without_a_finite_gradient_does_not_blame_the_engine(
    tmp_path: Path, digits: str, precision: str
) -> None:
    run = Ranks(2, tmp_path / "log", not_finite, 0, [write_config(tmp_path, digits), f"train.precision={precision}"])
    assert run.join() == [1, 1]
    says = (
        "error: self-check: the loss or its gradient is not finite before the first step; "
        "look at the weights that the run starts from "
    )
    assert f"{says}(teacher, init, LPIPS){' and at train.loss_scale' if precision == 'fp16' else ''}\n" in run.text
    assert "DeepSpeed" not in run.text.partition("error: ")[2] and "Traceback" not in run.text
