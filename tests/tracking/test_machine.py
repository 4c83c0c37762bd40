"""GPUs by a stand-in for NVIDIA's library, as there may be none here."""

import pynvml
import pytest

from cmdist.tracking.machine import Machine


def test_gpus_are_reported_by_number_and_a_silent_one_is_left_out(monkeypatch):
    class Memory:
        used, total = 3e9, 12e9

    class Rates:
        gpu = 75

    def rates(gpu):
        if gpu == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return Rates

    fakes = {"nvmlInit": lambda: None, "nvmlDeviceGetCount": lambda: 2, "nvmlDeviceGetHandleByIndex": lambda i: i}
    fakes |= {
        "nvmlDeviceGetMemoryInfo": lambda g: Memory,
        "nvmlDeviceGetUtilizationRates": rates,
        "nvmlDeviceGetPowerUsage": lambda g: 250_000,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    found = {name: value for name, value in Machine().look().items() if "gpu" in name}
    assert found == pytest.approx(
        {
            "system/gpu_0_utilization_percentage": 75,
            "system/gpu_0_memory_usage_megabytes": 3000,
            "system/gpu_0_memory_usage_percentage": 25,
            "system/gpu_0_power_usage_watts": 250,
        }
    )


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert not [name for name in Machine().look() if "gpu" in name]
