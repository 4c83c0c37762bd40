"""This node: how busy its CPU, memory and GPUs are, under the names that MLflow shows as system metrics;
what may wait for others.
"""

import contextlib
from pathlib import Path

import psutil
import pynvml


class Machine:
    """Looks at the whole node; GPUs only where NVIDIA's library is."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call begins the interval of the next
        try:
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            self._gpus = []

    def look(self) -> dict[str, float]:
        """Percentages, megabytes and watts; of CPUs the mean since the last look.
        A GPU that does not answer is left out.
        """
        memory = psutil.virtual_memory()
        figures = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
        }
        for i, gpu in enumerate(self._gpus):
            try:
                used = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                figures |= {
                    f"system/gpu_{i}_utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
                    f"system/gpu_{i}_memory_usage_megabytes": used.used / 1e6,
                    f"system/gpu_{i}_memory_usage_percentage": 100 * used.used / used.total,
                    f"system/gpu_{i}_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
                }
            except pynvml.NVMLError:
                continue
        return figures


def step_aside(session: int, nice: int) -> None:
    """Lower the priority of the session that process `session` leads: Linux may share CPU time between sessions before
    it looks at nice.
    """
    with contextlib.suppress(OSError):  # no such division (sched_autogroup), or the process is gone
        Path(f"/proc/{session}/autogroup").write_text(str(nice))
