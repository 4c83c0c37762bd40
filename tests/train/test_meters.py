import time

import pytest
import torch

from cmdist.train.meters import Clock, FirstNotFinite, SigmaBuckets


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


def test_whatever_is_told_has_a_mean_by_noise_level_and_may_be_negative():
    buckets = SigmaBuckets(0.01, 100.0, torch.device("cpu"), count=4)
    sigma = torch.tensor([0.02, 0.03, 50.0])
    buckets.add("loss", sigma, torch.tensor([1.0, 3.0, 5.0]))
    buckets.add("tangent", sigma, torch.tensor([-1.0, -3.0, 8.0]))
    here, elsewhere = buckets.take(), {name: [[0.0] * 4, [0.0] * 4] for name in ("loss", "tangent")}
    found = buckets.metrics([here, elsewhere])
    assert found == {
        "loss_sigma_0.01_0.1": 2.0,
        "loss_sigma_10_100": 5.0,
        "tangent": pytest.approx(4 / 3),
        "tangent_sigma_0.01_0.1": -2.0,
        "tangent_sigma_10_100": 8.0,
    }
    assert buckets.metrics([buckets.take()]) == {}, "what was taken counts once"


def test_the_first_loss_that_is_not_finite_is_remembered():
    first, sigma = FirstNotFinite(torch.device("cpu")), torch.tensor([0.5, 3.0, 20.0])
    yes, no, nan, inf = torch.tensor(True), torch.tensor(False), float("nan"), float("inf")
    first.see(sigma, torch.tensor([1.0, 2.0, 3.0]), yes)
    first.see(sigma, torch.tensor([nan, 2.0, 3.0]), no)
    assert first.sigma() is None
    first.see(sigma, torch.tensor([nan, -inf, 3.0]), yes)
    assert first.sigma() == 3.0
    first.see(sigma, torch.tensor([nan, nan, nan]), yes)
    assert first.sigma() == 3.0
