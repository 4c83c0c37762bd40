"""What vendors' data sheets say of GPUs, for plans; what was measured on them, once something was."""

from dataclasses import dataclass

from cmdist.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """GB of memory, peaks of dense products in TFLOP/s (data sheets often print the double, with sparsity), and the
    part of the peak that training on it has reached (None: nobody has measured).
    """

    memory: float
    half: float  # bf16 and fp16, accumulated in fp32
    tf32: float  # what fp32 means here
    utilisation: float | None = None

    def peak(self, precision: str) -> float:
        """TFLOP/s of products in train.precision."""
        return self.tf32 if precision == "fp32" else self.half


# NVIDIA's data sheets: A100 (2021), H100 (2023), H200 (2024), B200 (of DGX B200, an eighth), A40 (2022), L40S (2023).
GPUS = {
    "a100": Gpu(80, 312, 156),
    "a100-40gb": Gpu(40, 312, 156),
    "h100": Gpu(80, 989.5, 494.7),
    "h100-pcie": Gpu(80, 756, 378),
    "h200": Gpu(141, 989.5, 494.7),
    "b200": Gpu(180, 2250, 1125),
    "a40": Gpu(48, 149.7, 74.8),
    "l40s": Gpu(48, 362, 183),
}
ASSUMED = 0.3  # of the peak, where nothing has been measured


def gpu(name: str) -> Gpu:
    """By its name, in whatever case. Raises ConfigError."""
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu {name}: {', '.join(GPUS)} are known; of others give --peak-tflops and --gpu-memory")
    return GPUS[name.lower()]
