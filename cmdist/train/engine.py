"""DeepSpeed, behind one class: forward, backward, step, and this rank's slice of the training state.
The only door to deepspeed.
"""

import logging
import os
import sys
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmdist.checkpoints.layout import Layout, Piece, load_slice, overlap, read_slice
from cmdist.system import collector
from cmdist.train.flat import BUCKET, Flat
from cmdist.train.loss_scale import LossScale

Kind = Literal["master", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = ("master", "exp_avg", "exp_avg_sq")


def _deepspeed() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )  # of torch, about names that DeepSpeed uses
    hidden = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]  # how Python marks what cannot be imported
    # DeepSpeed's autotuner would import MLflow, and its Muon optimizer (which ZeRO looks at) torch's compiler: half of
    # the time that a rank takes to start. Nothing here uses either.
    compiler, torch.compile = torch.compile, lambda function: function  # type: ignore[assignment]
    try:
        with collector.resting():
            import deepspeed
            import deepspeed.ops
            import deepspeed.runtime.zero.muon.muon_optimizer
    finally:
        torch.compile = compiler
        if hidden:
            del sys.modules["mlflow"]

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Instead of the table that is made when it is first looked at, by starting compilers and asking GPUs for every
    # operator. On CPU the process group would then compile one (half a minute) that only inference uses.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    return deepspeed


class Engine:
    """A module and its optimizer under ZeRO 0, 1 or 2, with fp32 weights; the process group must exist.

    `start`, `stop` bound this rank's slice of the canonical vector (layout.py). `loss_scale`: the first one for fp16,
    None for no scaling. `norm` (before clipping) and `since_first_overflow` are of the last step, perhaps still on the
    device: `gradient_norm` and `since_overflow` wait for them.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        zero_stage: int,
        micro_batch: int,
        accumulation: int,
        clip: float = 0.0,
        loss_scale: float | None = None,
    ) -> None:
        deepspeed = _deepspeed()
        self.layout = Layout.of(module)
        self.loss_scale = LossScale(loss_scale or 1.0, dynamic=loss_scale is not None)
        self.accumulation = accumulation
        self._stage = zero_stage
        self._clip = clip
        # DeepSpeed looks at the norm at every step, and the host waits. Needed at once it is only for clipping and for
        # a step that is tried again; else the device keeps it until it is asked for.
        self._own_norm = not clip and not self.loss_scale.dynamic
        self.norm: Tensor | float = 0.0
        # steps since the first gradient that was not finite
        self.since_first_overflow = torch.tensor(-1, device=next(module.parameters()).device)
        world = dist.get_world_size()
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_batch_size": micro_batch * accumulation * world,
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": clip if zero_stage else 0.0,  # left out, it would mean 1.0
                "zero_optimization": {
                    "stage": zero_stage,
                    "reduce_bucket_size": BUCKET,
                    "overlap_comm": False,
                    "round_robin_gradients": False,
                    "parameter_alignment": False,
                    **({"compute_grad_norm": False} if zero_stage and self._own_norm else {}),
                },
                "timers": {"throughput": {"enabled": False}},  # it waits for the device before and after each step
                "zero_allow_untested_optimizer": True,  # RAdam and Adam work element by element, so slices are safe
                "steps_per_print": 2**62,
            },
        )
        self.module: nn.Module = self._engine.module
        self._torch_optimizer: torch.optim.Optimizer = (
            self._engine.optimizer.optimizer if zero_stage else self._engine.optimizer
        )
        if zero_stage == 0:
            self._flat = Flat([p for p in module.parameters() if p.requires_grad])
            self._torch_optimizer.param_groups[0]["params"] = [self._flat.vector]
        if self._own_norm:
            self._torch_optimizer.register_step_pre_hook(self._measure)
        # DeepSpeed's flat vector is the canonical one: same order, no padding inside
        assert zero_stage == 0 or tuple(self._engine.optimizer.round_robin_bit16_offsets[0]) == self.layout.starts
        self._make_optimizer_state()
        pieces = self.pieces("master")
        self.start = pieces[0].start if pieces else self.layout.total
        self.stop = pieces[-1].stop if pieces else self.start

    def __call__(self, *inputs: Any, **told: Any) -> Tensor:
        """The module's forward pass, with gradient."""
        return self._engine(*inputs, **told)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss;
        the division by `accumulation` and the loss scale happen here.
        """
        if self._stage == 0:
            loss = loss * self.loss_scale.value
        elif self.loss_scale.dynamic:
            self._engine.optimizer.override_loss_scale(self.loss_scale.value)  # ZeRO scales, and unscales at the step
        self._engine.backward(loss)

    def step(self) -> bool:
        """End a micro-batch. After the last of a step the weights move: False if that was skipped for an overflow.

        Without clipping and loss scale a step is always taken, and `since_overflow` tells later whether it should not.
        """
        boundary = self._engine.is_gradient_accumulation_boundary()
        taken = self._plain_step(boundary) if self._stage == 0 else self._zero_step(boundary)
        if boundary:
            self.loss_scale.update(taken)
        return taken

    def _zero_step(self, boundary: bool) -> bool:
        skipped = self._engine.skipped_steps
        self._engine.step()
        if boundary and not self._own_norm:
            norm = self._engine.get_global_grad_norm()
            self.norm = 0.0 if norm is None else norm
        return bool(self._engine.skipped_steps == skipped)

    def _plain_step(self, boundary: bool) -> bool:
        if boundary:
            gradient = self._flat.take_gradients()
            if not self._own_norm and not self._scale_and_clip(gradient):  # ZeRO 1 and 2 do it themselves
                self._flat.drop_gradients()
                self._engine.micro_steps += 1
                return False
        self._engine.step()
        if boundary:
            self._flat.drop_gradients()
        return True

    def _scale_and_clip(self, gradient: Tensor) -> bool:
        if self.loss_scale.value != 1.0:
            gradient.div_(self.loss_scale.value)
        self.norm = float(gradient.norm())
        if self.norm != self.norm or self.norm == float("inf"):
            return False
        if self._clip and self.norm > self._clip:
            gradient.mul_(self._clip / (self.norm + 1e-6))
        return True

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The norm of the gradient that the optimizer is about to use, and whether it is finite, left on the device."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
        if self._stage:  # each rank has a slice; without ZeRO the whole
            dist.all_reduce(squares)
        self.norm = squares.sqrt()
        self.since_first_overflow = torch.where(
            self.since_first_overflow < 0, self.norm.isfinite().long() * -1, self.since_first_overflow + 1
        )

    def since_overflow(self) -> int | None:
        """How many steps ago the first one was whose gradient was not finite, None without one;
        waits for the device.
        """
        since = int(self.since_first_overflow)
        return None if since < 0 else since

    def gradient_norm(self) -> float:
        """L2 norm of the whole gradient of the last step, before clipping; waits for the device."""
        return float(self.norm)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next step."""
        for group in self._torch_optimizer.param_groups:
            group["lr"] = lr

    def pieces(self, kind: Kind) -> list[Piece]:
        """This rank's slice of a state, as flat views of live memory in order."""
        if self._stage == 0:
            share = -(-self.layout.total // dist.get_world_size())
            return overlap(self._whole(kind), dist.get_rank() * share, (dist.get_rank() + 1) * share)
        zero = self._engine.optimizer
        (flat,) = zero.single_partition_of_fp32_groups
        memory = self._memory(flat, kind)
        first = dist.get_rank() * flat.numel()
        length = min(flat.numel(), self.layout.total - first)  # the last ranks may hold padding
        return [Piece(first, memory[:length])] if length > 0 else []

    def slice(self, kind: Kind, device: torch.device | str = "cpu") -> Tensor:
        """A copy of this rank's slice of a state, fp32, (stop - start,)."""
        return read_slice(self.pieces(kind), device)

    def load(self, kind: Kind, values: Tensor) -> None:
        """Set this rank's slice of a state; all ranks must call. Weights of all ranks are up to date afterwards."""
        assert values.numel() == self.stop - self.start
        load_slice(self.pieces(kind), self.start, values)
        if self._stage == 0:
            for start, part in all_slices(values, self.start):
                load_slice(self._whole(kind), start, part)
        elif kind == "master":
            self._engine.optimizer.update_lp_params()

    def zero_moments(self) -> None:
        """Let the optimizer start afresh; all ranks must call."""
        for kind in KINDS[1:]:
            self.load(kind, torch.zeros(self.stop - self.start))
        self.optimizer_step = 0

    @property
    def optimizer_step(self) -> int:
        """How many steps the optimizer has taken."""
        return int(next(iter(self._torch_optimizer.state.values()))["step"])

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        for state in self._torch_optimizer.state.values():
            state["step"] = torch.tensor(float(step))

    def _whole(self, kind: Kind) -> list[Piece]:
        return [Piece(0, self._memory(self._flat.vector, kind))]

    def _memory(self, flat: Tensor, kind: Kind) -> Tensor:
        return flat.data if kind == "master" else self._torch_optimizer.state[flat][kind]  # type: ignore[no-any-return]

    def _make_optimizer_state(self) -> None:
        # torch makes it at the first step; made here, loading is the same before and after one
        for group in self._torch_optimizer.param_groups:
            for p in group["params"]:
                self._torch_optimizer.state[p] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(p.data),
                    "exp_avg_sq": torch.zeros_like(p.data),
                }


def all_slices(values: Tensor, start: int) -> list[tuple[int, Tensor]]:
    """(start, slice) of every rank's part of a vector; all ranks must call."""
    bounds: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(bounds, (start, values.numel()))
    longest = max(length for _, length in bounds)
    mine = torch.zeros(
        longest, device="cuda" if dist.get_backend() == "nccl" else values.device
    )  # checkpoints come to the host, NCCL serves GPUs
    mine[: values.numel()] = values
    parts = [torch.empty_like(mine) for _ in bounds]
    dist.all_gather(parts, mine)
    return [(first, part[:length]) for (first, length), part in zip(bounds, parts, strict=True)]
