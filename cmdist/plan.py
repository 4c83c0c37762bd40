"""What a run would need, without a GPU:
one micro-batch of the real objective on tensors without data, its FLOPs and live bytes counted.
"""

import collections
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from cmdist import build
from cmdist.config import Config
from cmdist.core import distances
from cmdist.core.guidance import classifier_free
from cmdist.core.objectives.base import Networks
from cmdist.dataless import Dataless, meta, tensors
from cmdist.nets.classifier import Classifier, Layers
from cmdist.nets.lpips import Lpips
from cmdist.nets.undrawn import Undrawn
from cmdist.train.flat import BUCKET
from cmdist.train.optim import make_optimizer

GB = 1e9
LIBRARIES = 1.5 * GB  # CUDA context, cuDNN and cuBLAS workspaces: a round allowance
KINDS = {  # a part of an operation's name -> what a reader calls it; the first that fits
    "_to_copy": "casts and changes of format",
    "clone": "casts and changes of format",
    "convolution": "convolutions",
    "group_norm": "group normalization",
    "attention": "attention",
    "mm": "matrix products",
}
FRAGMENTATION = 0.1  # of the activations: what a caching allocator loses, an allowance too


@dataclass(frozen=True)
class Plan:
    """Costs of a run on `ranks` GPUs; bytes are of each rank."""

    parameters: int
    forward_flops: float  # the student's forward pass, one image
    flops: float  # one image of training: teacher, target, student forward and backward, LPIPS
    images: int  # to be seen over the whole run
    touched: dict[str, float]  # kind of operation -> bytes that those of a micro-batch read and write, none compiled
    update: float  # bytes that moving the weights, averages and target reads and writes at the end of a step
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
    """Count everything for `ranks` ranks.
    The network runs as written (not compiled), on the CPU's operators in the given precision.
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build.network(config).parameters())
        lowered = list(build.lowered(build.network(config)).parameters())
    low = float(sum(p.nbytes for p in lowered if p.dtype != torch.float32))  # what a frozen network has in 16 bits
    perceptual = None
    if config.lpips:  # its weights change no figure
        with Undrawn():
            perceptual = Lpips(config.lpips.pooling, config.lpips.precision)
    forward, step = _micro_batch(config, perceptual)
    peak = float(step.peak)
    t, state = config.train, 4.0 * parameters  # bytes of one fp32 copy
    share = state / ranks
    partitioned, changing = t.zero_stage > 0, config.kind.teacher_is_student
    memory = {
        "weights": state,
        "gradients": share if t.zero_stage == 2 else state,
        "reduction bucket": 4.0 * min(BUCKET, parameters) if partitioned else 0.0,
        "fp32 master slice": share if partitioned else 0.0,
        "moments": 2 * (share if partitioned else state),
        f"averages ({len(t.ema)})": len(t.ema) * share,
        "target": state + low if build.needs_target(config) else 0.0,
        "guide": state - low if config.guide else 0.0,
        "teacher": state + (low if changing else -low) if config.teacher not in (None, "exact") else 0.0,
        "frozen helper": state - low if config.frozen else 0.0,
        "LPIPS": float(sum(p.nbytes for p in perceptual.parameters())) if perceptual else 0.0,
        "activations": peak,
        "allocator and libraries (assumed)": FRAGMENTATION * peak + LIBRARIES,
    }
    copies = 3 + len(t.ema) + (1 if build.needs_target(config) else 0) + changing
    return Plan(
        parameters=parameters,
        forward_flops=forward.flops / t.micro_batch,
        flops=step.flops / t.micro_batch,
        touched=_kinds(step),
        update=_update(config, parameters, -(-parameters // ranks)),
        images=t.steps * t.global_batch,
        memory={part: size for part, size in memory.items() if size},
        host_memory=copies * share,
    )


def forward_pass(config: Config) -> tuple[int, float]:
    """Parameters, and FLOPs of the student's forward pass for one image: a tenth of a plan's work."""
    with Dataless():
        counter = _forward(config, build.network(_unlabelled(config)))
    return sum(p.numel() for p in build.on_meta(config).parameters()), counter.flops / config.train.micro_batch


def _kinds(counter: "Counter") -> dict[str, float]:
    kinds = dict.fromkeys(KINDS.values(), 0.0) | {"everything else": 0.0}
    for name, size in counter.touched.items():
        kinds[next((kind for part, kind in KINDS.items() if part in name), "everything else")] += float(size)
    return kinds


def _update(config: Config, parameters: int, share: int) -> float:
    """Bytes of what `train.engine` and `train.averages` do with a gradient, of which a rank owns a share; without
    clipping, loss scale and communication, and none compiled.
    """
    o, t = config.optimizer, config.train
    weights = nn.Parameter(torch.empty(share if t.zero_stage else parameters, device="meta"))
    optimizer = make_optimizer(o.kind, [weights], betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    optimizer.state[weights] = {kind: torch.empty_like(weights.data) for kind in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weights]["step"] = torch.tensor(1e4)  # RAdam's first steps do less
    with Counter() as counter, torch.no_grad():
        weights.grad = torch.cat([weights.data])
        weights.grad.norm()
        optimizer.step()
        if t.zero_stage:  # into the module's own memory
            torch.empty_like(weights.data).copy_(weights.data)
        for _ in t.ema:
            torch.empty(share, device="meta").lerp_(weights.data[:share], 0.5)
        if build.needs_target(config):
            torch.empty(parameters, device="meta").lerp_(torch.empty(parameters, device="meta"), 0.5)
    return float(counter.touched.total())


def _micro_batch(config: Config, perceptual: Lpips | None) -> tuple["Counter", "Counter"]:
    """What the student's forward pass costs, and what the loss and its gradient do."""
    unlabelled = _unlabelled(config)
    distance = distances.lpips(perceptual, perceptual.features) if perceptual else None
    if config.classifier:  # its weights change no figure either
        layers = Layers(Classifier(config.data.channels, 2))
        distance = distances.Perceptual(layers, layers.features, None)
    objective = build.objective(unlabelled, lambda keys: distance or build.distance(unlabelled, keys))
    b, size, channels = config.train.micro_batch, config.data.image_size, config.data.channels
    with Dataless():
        student = build.network(unlabelled)
        other = build.lowered(student)
        for parameter in student.parameters():
            parameter.register_post_accumulate_grad_hook(_drop)  # gradients are a part of their own
        images = torch.zeros(b, channels, size, size)
        draw = objective.draw(images.shape, objective.at(0), torch.Generator())
        forward = _forward(config, student)
        denoise, fixed = build.model(unlabelled, student), build.model(unlabelled, other)
        plain = unlabelled.as_denoiser()
        teacher = fixed if plain is unlabelled else build.model(unlabelled, build.network(plain))
        guided = classifier_free(teacher, config.guidance)  # a guide is taken for as large as the teacher
        extra = config.kind.extra(config.objective) if config.kind.extra else None
        networks = Networks(denoise, denoise, target=fixed, teacher=guided, frozen=fixed, extra=extra)
        with Counter() as step:
            objective.loss(networks, images, None, draw).minimised.mean().backward()  # type: ignore[no-untyped-call]
    return forward, step


def _unlabelled(config: Config) -> Config:
    """Labels cost nothing, and have values."""
    return config.model_copy(update={"data": config.data.model_copy(update={"classes": 0})})


def _forward(config: Config, student: nn.Module) -> "Counter":
    """A pass of a micro-batch."""
    b, size = config.train.micro_batch, config.data.image_size
    images, sigma = torch.zeros(b, config.data.channels, size, size), torch.ones(b)
    with Counter() as counter, torch.no_grad():
        student(images, sigma, None, *([sigma] if config.second_time else []))
    return counter


class Counter(TorchDispatchMode):
    """Inside, `flops` by torch's own formulas, the bytes that each kind of operation reads and writes (`touched`), and
    the bytes of all storages that were made inside and still live: `now`, and their `peak`.

    An operation touches each tensor that it is given and gives back, as if it were compiled by itself: an upper bound
    where a compiler fuses several. Not torch's FlopCounterMode: it follows modules too, and keeps what backward
    recomputes alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self.touched: collections.Counter[str] = collections.Counter()
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, bool] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors((args, kwargs))
        before = {meta(t).untyped_storage()._cdata for t in given}
        out = func(*args, **(kwargs or {}))
        made = tensors(out)
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if func.namespace == "aten" and not (func.is_view or func._overloadpacket in _UNTOUCHED):
            self.touched[func._overloadpacket.__name__] += sum(map(_bytes, (*given, *made)))
        for tensor in made:
            storage = meta(tensor).untyped_storage()
            if storage._cdata not in before and storage not in self._known:
                self._known[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here."""
        return False

    def _gone(self, size: int) -> None:
        self.now -= size


def _bytes(tensor: Tensor) -> int:
    """What lies in memory of a tensor: one that is expanded lies there once."""
    return min(tensor.nbytes, meta(tensor).untyped_storage().nbytes())


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _attention(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop(q, k, v))


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop(gradient, q, k, v))


_aten = torch.ops.aten
_UNTOUCHED = (
    *(_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided),
    *(_aten._unsafe_view, _aten.lift_fresh),
)
_FORMULAS: dict[Any, Any] = flop_registry | {  # which knows the attention kernels of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
