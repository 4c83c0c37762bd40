"""The loop: a list of what happens, in order."""

import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from tqdm import tqdm

from cmdist import seeding
from cmdist.checkpoints.saver import LONGEST_LAST, WAIT, Saver
from cmdist.core.guidance import NULL, Drawn, Guidance
from cmdist.core.noise import Denoise, onto, unit_pixels
from cmdist.core.objectives.base import At, Draw, Losses, Networks, Objective
from cmdist.data.reader import MicroBatch
from cmdist.errors import CmdistError
from cmdist.system import distributed
from cmdist.system.distributed import StopRequest, Vote, World
from cmdist.tracking.journal import Tracker
from cmdist.train.averages import Averages, Copy
from cmdist.train.engine import Engine
from cmdist.train.glance import Glances
from cmdist.train.meters import Clock, FirstNotFinite, SigmaBuckets
from cmdist.train.selfcheck import Checked, self_check
from cmdist.train.snapshots import Snapshots

MAX_SKIPPED = 50  # overflowing attempts at one step before the run is given up


@dataclass(frozen=True)
class Schedule:
    """Numbers of the loop, in optimizer steps."""

    steps: int
    log_every: int
    checkpoint_every: int
    global_batch: int


@dataclass
class Trainer:
    """All that a step needs. `step` is k, the number of optimizer steps that really happened:
    with it, everything else follows.
    """

    world: World
    seed: int
    schedule: Schedule
    engine: Engine
    objective: Objective
    networks: Networks
    conditional: bool  # whether the networks are given labels
    label_dropout: float  # the share of them that become that of no class
    guide: Callable[[Guidance], Denoise] | None  # the teacher, to be guided by scales that are drawn
    guidance: Guidance
    learning_rate: Callable[[int], float]
    averages: Averages
    copies: dict[str, Copy]  # "target", "teacher": what the loss needs of the student's past
    batches: Generator[MicroBatch, None, None]  # of this rank, from `step` on
    buckets: SigmaBuckets
    not_finite: FirstNotFinite
    clock: Clock
    snapshots: Snapshots
    saver: Saver
    tracker: Tracker | None  # on rank 0
    describe: dict[str, object]  # what goes into state.json beside the step
    stop: StopRequest
    glances: Glances | None = None  # on rank 0
    step: int = 0
    unsound: torch.Tensor | bool = False  # whether the loss of a step was not finite since the start, on the device
    pending: list[MicroBatch] = field(default_factory=list)  # read ahead by the self-check

    def self_check(self, *, beta1: float, clip: float, weight_decay: float) -> Checked:
        """The engine's gradient against autograd's, on the micro-batches of the first step, which stay there for it."""
        self.world.alive()
        self.pending = [next(self.batches) for _ in range(self.engine.accumulation)]
        at = self.objective.at(self.step)

        def loss(batch: MicroBatch, networks: Networks) -> torch.Tensor:
            self.world.alive()
            return self._losses(batch, at, networks)[1].minimised.mean()

        bare = dataclasses.replace(self.networks, student=self.networks.bare_student)
        plain = [functools.partial(loss, batch, bare) for batch in self.pending]
        through = [functools.partial(loss, batch, self.networks) for batch in self.pending]
        return self_check(self.engine, plain, through, beta1=beta1, clip=clip, weight_decay=weight_decay)

    def fit(self) -> bool:
        """Train to the last step or to a stop request; True if the last step is done and committed."""
        with tqdm(
            total=self.schedule.steps,
            initial=self.step,
            disable=not self.world.first,
            unit="step",
            file=sys.stderr,
            mininterval=1.0,
        ) as bar:
            saved = self._steps(bar)
        if not saved and self.step < self.schedule.steps:
            self.save(last=True)
        self.world.alive(LONGEST_LAST)
        with self.clock.count("checkpoint_stall"):
            self.saver.wait()
        self._look()
        if self.glances is not None:
            self.glances.close()
        self.world.alive()
        return self.step >= self.schedule.steps

    def _steps(self, bar: "tqdm[NoReturn]") -> bool:
        """The steps, up to the last one or to a stop request; whether the last one done is saved."""
        window, window_start = self.step, time.perf_counter()
        saved = stopping = False
        vote = Vote(self.world.control)
        while self.step < self.schedule.steps and not stopping:
            self.world.alive()
            at = self.objective.at(self.step)
            loss = self.train_step(at)
            self.step += 1
            saved = False
            self.saver.check()
            self._look()
            stopping = vote(self.stop.signal is not None)
            last = self.step == self.schedule.steps
            if last or self.step % self.schedule.log_every == 0:
                seconds = time.perf_counter() - window_start
                speed = (self.step - window) * self.schedule.global_batch / seconds
                shown = {"loss": self._log(at, loss, images_per_second=speed), **at}
                window, window_start = self.step, time.perf_counter()
                bar.set_postfix_str(", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
            if last or stopping or self.step % self.schedule.checkpoint_every == 0:
                self._refuse_overflow(loss)
                self.save(last or stopping)
                saved = True
            bar.update()
        vote.close()
        return saved

    def _look(self) -> None:
        if self.glances is not None:
            self.glances.after(self.saver.committed)

    def close(self, status: str) -> None:
        """End the reading, and tell MLflow how the run ended: FINISHED, KILLED or FAILED."""
        self.batches.close()
        if self.tracker is not None:
            self.tracker.close(status)

    def train_step(self, at: At) -> torch.Tensor:
        """One optimizer step with the numbers `at`; the losses (M/world,) of this rank's micro-batches."""
        with self.clock.count("data_wait"):
            micro_batches = [
                self.pending.pop(0) if self.pending else next(self.batches) for _ in range(self.engine.accumulation)
            ]
        for key, why in (replaced for batch in micro_batches for replaced in batch.replaced):
            tqdm.write(f"warning: {why}; another sample stands in for {key}", file=sys.stderr)
        with self.clock.count("useful"):
            self._act()
            self.engine.set_lr(self._rate(self.step))
            # without a scale to halve, the next one would be the same
            attempts = MAX_SKIPPED if self.engine.loss_scale.dynamic else 1
            for _ in range(attempts):
                done = [self._micro_step(batch, at) for batch in micro_batches]
                losses = torch.stack([each.minimised.mean() for _, each, _ in done])
                taken = done[-1][2]
                if taken:  # else an overflow: nothing has moved, and the same step is tried again
                    self.unsound = losses.isfinite().logical_not().any() | self.unsound
                    break
            else:
                raise self._overflow(self.step, attempts, losses)
            for sigma, each, _ in done:
                for name, values in {"loss": each.minimised, **each.told}.items():
                    self.buckets.add(name, sigma, values)
            self.averages.update(self.step)
            if "target" in self.copies:
                self.copies["target"].update(self.engine.module, at["mu"])
        return losses

    def _act(self) -> None:
        """What the objective asks for before this step; a run that comes back here does it again."""
        acts = self.objective.acts(self.step)
        if acts.teacher_is_student:
            self.copies["teacher"].update(self.engine.module, 0.0)
        if acts.zero_moments:
            self.engine.zero_moments()

    def _rate(self, step: int) -> float:
        """The learning rate of a step; an objective of stages may let it fall in each."""
        return self.learning_rate(step) * self.objective.at(step).get("lr_factor", 1.0)

    def _micro_step(self, batch: MicroBatch, at: At) -> tuple[torch.Tensor, Losses, bool]:
        """Noise levels and losses (B,) of a micro-batch, and whether the weights moved where it ends a step."""
        draw, losses = self._losses(batch, at, self.networks)
        self.not_finite.see(draw.sigma, losses.minimised, self.engine.since_first_overflow < 0)
        self.engine.backward(losses.minimised.mean())
        taken = self.engine.step()
        told = {name: each.detach() for name, each in losses.told.items()}
        return draw.sigma, Losses(losses.minimised.detach(), told), taken

    def _losses(self, batch: MicroBatch, at: At, networks: Networks) -> tuple[Draw, Losses]:
        device = self.world.device
        images = unit_pixels(onto(batch.images, device))
        labels = labels_of(batch, self.label_dropout, self.seed) if self.conditional else None
        labels = None if labels is None else onto(labels, device)
        if self.guide is not None:
            generator = seeding.generator(device, self.seed, "guidance", batch.number)
            networks = guided(networks, self.guide, self.guidance.drawn(len(images), generator))
        draw = self.objective.draw(images.shape, at, seeding.generator(device, self.seed, "draw", batch.number))
        return draw, self.objective.loss(networks, images, labels, draw)

    def _refuse_overflow(self, losses: torch.Tensor) -> None:
        """Where the host waits anyway, and before anything is kept; without a loss scale nobody looked at the step, and
        at the loss nobody does at all.
        """
        since = self.engine.since_overflow()
        if since is not None:
            raise self._overflow(self.step - 1 - since, 1, losses)
        if bool(self.unsound):  # the gradient may be finite all the same, e.g. 0
            raise CmdistError(
                f"step {self.step - 1}: a loss up to here was not finite (the last one {losses.mean():.4g}), so "
                "nothing is kept; look at the objective's keys and at the data"
            )

    def _overflow(self, step: int, attempts: int, losses: torch.Tensor) -> CmdistError:
        """The sentence; all ranks must call."""
        sigmas = distributed.gather(self.not_finite.sigma(), self.world.control)
        first = next((f", first at sigma {sigma:.4g}" for sigma in sigmas if sigma is not None), "")
        return CmdistError(
            f"step {step}: the gradient was not finite (attempts: {attempts}){first}; loss {losses.mean():.4g}, "
            "lower optimizer.lr"
        )

    def save(self, last: bool) -> None:
        """Copy this rank's state to host memory and hand it to the saver;
        skipped if that is in trouble with the step before.
        """
        self.world.alive(LONGEST_LAST if last else WAIT)  # the saver's own patience is no hang
        with self.clock.count("checkpoint_stall"):
            if not self.saver.ready(self.step, last):
                return
            state = self.describe | {"optimizer_step": self.engine.optimizer_step, "clock": self.clock.state()}
            state["loss_scale"] = self.engine.loss_scale.state()
            self.saver.save(self.step, self.snapshots.take(state), last)

    def _log(self, at: At, losses: torch.Tensor, images_per_second: float) -> float:
        """Tell the tracker how the last steps went; all ranks must call. The mean loss of the last one."""
        peak = (
            torch.cuda.max_memory_allocated()
            if self.world.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        gathered = distributed.gather((losses.tolist(), self.buckets.take(), peak), self.world.control)
        # micro-batch m lies on rank m modulo world: the mean is summed in the order of m, the same for any number of
        # ranks
        flat = [rank[0][i] for i in range(len(gathered[0][0])) for rank in gathered]
        mean = sum(flat) / len(flat)
        if self.tracker is not None:
            self.tracker.log(
                self.step,
                {
                    "loss": mean,
                    "lr": self._rate(self.step - 1),
                    "gradient_norm": self.engine.gradient_norm(),
                    "images_per_second": images_per_second,
                    "peak_memory_gb": max(rank[2] for rank in gathered) / 1e9,
                    "images_seen": self.step * self.schedule.global_batch,
                }
                | dict(at)
                | self.buckets.metrics([rank[1] for rank in gathered])
                | self.clock.metrics(),
            )
        return mean


def guided(networks: Networks, guide: Callable[[Guidance], Denoise], drawn: Drawn) -> Networks:
    """With a teacher that is guided by the scale of each image, which the student and its target are told."""
    target = None if networks.target is None else drawn.told(networks.target)
    student, bare = drawn.told(networks.student), drawn.told(networks.bare_student)
    return dataclasses.replace(networks, student=student, bare_student=bare, target=target, teacher=guide(drawn))


def labels_of(batch: MicroBatch, dropout: float, seed: int) -> torch.Tensor | None:
    """The labels (B,) int64 of a micro-batch, a share `dropout` of them that of no class."""
    if not dropout or batch.labels is None:
        return batch.labels
    draw = torch.rand(len(batch.labels), generator=seeding.generator("cpu", seed, "no label", batch.number))
    return batch.labels.masked_fill(draw < dropout, NULL)
