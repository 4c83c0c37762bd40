import time

import pytest

from cmdist.train.meters import Clock


def test_device_hours_add_up_over_attempts_on_other_numbers_of_devices(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    first = Clock(devices=8)
    now[0] += 3600
    state = first.state()
    now[0] += 1800  # lost: after the last checkpoint
    second = Clock.resumed(state, 2)
    now[0] += 7200
    assert second.metrics()["device_hours"] == pytest.approx(8 * 1 + 2 * 2)
    third = Clock.resumed(second.state(), 1)
    assert third.metrics()["device_hours"] == pytest.approx(12)


def test_a_checkpoint_from_before_device_hours_can_be_resumed():
    state = {
        "started_at": time.time(),
        "useful": 1.0,
        "data_wait": 0.0,
        "checkpoint_stall": 0.0,
        "restart_loss": 0.0,
        "saved_at": time.time(),
    }
    assert Clock.resumed(state, 4).metrics()["device_hours"] < 0.01
