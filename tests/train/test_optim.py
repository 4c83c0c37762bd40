import pytest

from cmdist.train.optim import learning_rate


def test_constant_without_warm_up_or_decay() -> None:
    assert {learning_rate(step, 0.5, 100) for step in range(100)} == {0.5}


def test_warm_up_then_constant_then_linear_to_zero() -> None:
    lr = [learning_rate(step, 1.0, 100, warmup_steps=10, decay_fraction=0.2) for step in range(100)]
    assert lr[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(lr[10:81]) == {1.0}
    assert lr[80:] == pytest.approx([(100 - s) / 20 for s in range(80, 100)])


def test_after_the_end_it_stays_zero() -> None:
    assert learning_rate(150, 1.0, 100, decay_fraction=0.2) == 0.0
