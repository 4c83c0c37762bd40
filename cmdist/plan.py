"""What a run would need, without a GPU: one micro-batch of the real objective on tensors without data, its FLOPs and
live bytes counted.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from cmdist import build, runs
from cmdist.config import Config
from cmdist.core import distances
from cmdist.core.objectives.base import Networks
from cmdist.nets.lpips import Lpips
from cmdist.train.engine import BUCKET

GB = 1e9
LIBRARIES = 1.5 * GB  # CUDA context, cuDNN and cuBLAS workspaces: a round allowance
FRAGMENTATION = 0.1  # of the activations: what a caching allocator loses, an allowance too


@dataclass(frozen=True)
class Plan:
    """Costs of a run on `ranks` GPUs; bytes are of each rank."""

    parameters: int
    forward_flops: float  # the student's forward pass, one image
    flops: float  # one image of training: teacher, target, student forward and backward, LPIPS
    images: int  # to be seen over the whole run
    memory: dict[str, float]  # part -> bytes on the GPU
    host_memory: float  # bytes of a checkpoint's copy

    @property
    def total_memory(self) -> float:
        """Bytes on each GPU."""
        return sum(self.memory.values())

    def gpu_hours(self, peak_tflops: float, mfu: float) -> float:
        """Hours of one GPU for the whole run, at `mfu` of `peak_tflops`."""
        return self.flops * self.images / (peak_tflops * 1e12 * mfu) / 3600


def plan(config: Config, ranks: int) -> Plan:
    """Count everything for `ranks` ranks. The network runs as written (not compiled), on the CPU's operators in the
    given precision.
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build.network(config).parameters())
    perceptual = Lpips(config.loss.lpips_pooling) if runs.uses_lpips(config) else None  # its weights change no figure
    forward, step, peak = _micro_batch(config, perceptual)
    t, state = config.train, 4.0 * parameters  # bytes of one fp32 copy
    share = state / ranks
    partitioned = t.zero_stage > 0
    memory = {
        "weights": state,
        "gradients": share if t.zero_stage == 2 else state,
        "reduction bucket": 4.0 * min(BUCKET, parameters) if partitioned else 0.0,
        "fp32 master slice": share if partitioned else 0.0,
        "moments": 2 * (share if partitioned else state),
        f"averages ({len(t.ema)})": len(t.ema) * share,
        "target": state if build.needs_target(config) else 0.0,
        "teacher": state if config.objective == "consistency_distillation" and config.teacher != "exact" else 0.0,
        "LPIPS": 4.0 * sum(p.numel() for p in perceptual.parameters()) if perceptual else 0.0,
        "activations": peak,
        "allocator and libraries (assumed)": FRAGMENTATION * peak + LIBRARIES,
    }
    copies = 3 + len(t.ema) + (1 if build.needs_target(config) else 0)
    return Plan(
        parameters=parameters,
        forward_flops=forward / t.micro_batch,
        flops=step / t.micro_batch,
        images=t.steps * t.global_batch,
        memory={part: size for part, size in memory.items() if size},
        host_memory=copies * share,
    )


def _micro_batch(config: Config, perceptual: Lpips | None) -> tuple[float, float, float]:
    """FLOPs of the student's forward pass, FLOPs of the loss and its gradient, and the most bytes that live at a time
    meanwhile.
    """
    unlabelled = config.model_copy(
        update={"data": config.data.model_copy(update={"classes": 0})}
    )  # labels cost nothing, and have values
    distance = distances.lpips(perceptual) if perceptual else build.distance(unlabelled)
    objective = build.objective(unlabelled, distance)
    b, size, channels = config.train.micro_batch, config.data.image_size, config.data.channels
    with FakeTensorMode(allow_non_fake_inputs=True):
        student, other = build.network(unlabelled), build.network(unlabelled).requires_grad_(False)
        for parameter in student.parameters():
            parameter.register_post_accumulate_grad_hook(_drop)  # gradients are a part of their own
        images, sigma = torch.zeros(b, channels, size, size), torch.ones(b)
        draw = objective.draw(images.shape, objective.at(0), torch.Generator())
        with Counter() as forward, torch.no_grad():
            student(images, sigma)
        denoise, fixed = build.model(unlabelled, student), build.model(unlabelled, other)
        networks = Networks(student=denoise, bare_student=denoise, target=fixed, teacher=fixed)
        with Counter() as step:
            objective.loss(networks, images, None, draw).minimised.mean().backward()  # type: ignore[no-untyped-call]
    return float(forward.flops), float(step.flops), float(step.peak)


class Counter(TorchDispatchMode):
    """Inside, `flops` by torch's own formulas, and the bytes of all storages that were made inside and still live:
    `now`, and their `peak`.

    Not torch's FlopCounterMode: it follows modules too, and keeps what backward recomputes alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, bool] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage not in self._known:
                self._known[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _attention(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop(q, k, v))


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop(gradient, q, k, v))


_FORMULAS: dict[Any, Any] = flop_registry | {  # which knows the attention kernels of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
