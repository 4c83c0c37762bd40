"""Every random number of a run: pure functions of (seed, what it is for, which one). Nothing random is ever saved."""

import hashlib

import numpy as np
import torch

Part = int | str


def key(seed: int, *parts: Part) -> int:
    """A 63-bit integer that depends on nothing but its arguments, e.g. `key(seed, "draw", micro_batch)`."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(device: torch.device | str, seed: int, *parts: Part) -> torch.Generator:
    """A torch generator for `parts`; CPU and CUDA generators of the same key give different numbers."""
    return torch.Generator(device=device).manual_seed(key(seed, *parts))


def numpy_generator(seed: int, *parts: Part) -> np.random.Generator:
    """A counter-based numpy generator for `parts`: the same numbers on every machine."""
    return np.random.Generator(np.random.Philox(key(seed, *parts)))
