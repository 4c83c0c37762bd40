"""DeepSpeed is imported without its table of operators, which starts compilers and asks GPUs to be made."""

import importlib

import pytest

from cmdist.train import engine


def test_no_operator_is_probed_or_built(monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed = engine._deepspeed()

    def probe() -> None:
        raise AssertionError("operators were probed")

    monkeypatch.setattr(deepspeed.ops, "_probe_compatible_ops", probe)
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__")
    assert engine._deepspeed() is deepspeed
    assert importlib.import_module("deepspeed.comm.torch").build_shm_op() is None
