"""Saving in the background: the loop waits only for the copy to host memory;
COMMIT is written when every rank's files are there.

One save is under way at a time. A save that falls due meanwhile waits for it (up to WAIT seconds) as long as it goes
well; if it does not, the new one is skipped. What a store may do later is tried again until the next commit; errors are
told at the next step; more than `max_missed` saves in a row without a commit end the run.
"""

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmdist import migrations
from cmdist.checkpoints import checkpoint, sealed
from cmdist.checkpoints.attempt import Attempt
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.checkpoints.layout import Layout
from cmdist.checkpoints.retention import Keep, refused, thin, thinning
from cmdist.checkpoints.snapshot import Snapshot as Snapshot
from cmdist.checkpoints.snapshot import of_slices
from cmdist.checkpoints.snapshot import owners as owners
from cmdist.errors import CheckpointError, CmdistError, Damaged, Fenced, StoreDenied, StoreError
from cmdist.system import cli, distributed, sharing, storage
from cmdist.system.distributed import World

WAIT = 20.0  # seconds that the loop waits for a save under way that goes well
LAST_WAIT = 600.0  # seconds that the end of a run waits for a store that fails
LONGEST_PAUSE = 30.0  # seconds between two tries
# the longest that a last save may take beyond a step: its last try begins late, and the store's own patience is in it
LONGEST_LAST = LAST_WAIT + LONGEST_PAUSE + 2 * storage.PATIENCE
REWRITES = 3  # of a file that does not read back as it was written


@dataclass
class _Job:
    """A save under way."""

    step: int
    snapshot: Snapshot
    url: str
    written: dict[str, Any] = field(default_factory=dict)  # entries of this rank's files that are there
    state: bytes = b""  # state.json
    marked: bool = False  # as UNFINISHED
    commit: bytes = b""  # made once: a try whose answer was lost is known again by it
    trouble: bool = False  # it has met an error
    give_up: bool = False  # no more tries after the one under way
    done: threading.Event = field(default_factory=threading.Event)


class Saver:
    """Writes snapshots of all ranks, one at a time;
    commits as long as `attempt` is the newest (None: nobody else writes here).
    """

    def __init__(
        self,
        run_url: str,
        run_id: str,
        layout: Layout,
        world: World,
        *,
        attempt: Attempt | None = None,
        keep: Keep | None = None,
        max_missed: int = 3,
    ) -> None:
        self._run_url, self._run_id, self._layout, self._world = run_url, run_id, layout, world
        self._attempt, self._keep, self._max_missed = attempt, keep or Keep(0), max_missed
        self._number = attempt.number if attempt else 0
        # its own group: the messages of a save run beside those of training and must not mix with them
        self._group = distributed.gloo_group(world.size, longer=LONGEST_LAST)
        self._owners = owners(distributed.gather(world.local_rank, self._group))
        self.committed: int | None = None  # the last step that was, by this process
        self._job: _Job | None = None
        self._missed = 0
        self._kept_by_store = False  # it refuses to delete, and that was said
        self._told: list[str] = []  # what to report at the next step
        self._failure: BaseException | None = None

    def ready(self, step: int, last: bool) -> bool:
        """Whether step `step` can be saved now, the save before being done; if not, the step is missed.
        All ranks must call.
        """
        job = self._job
        if job is not None and last:
            while not job.trouble and not job.done.wait(0.02):
                pass
            job.give_up = True  # this newer one takes its place
            job.done.wait()
        elif job is not None:
            deadline = time.monotonic() + WAIT
            while not job.trouble and time.monotonic() < deadline and not job.done.wait(0.02):
                pass
            busy, trouble = not job.done.is_set(), job.trouble
            if distributed.agree(busy, self._world.control):
                self._miss(f"step {step} is not saved, the save of step {job.step} is still under way", counts=trouble)
                return False
        self._job = None
        self.check()
        return True

    def save(self, step: int, snapshot: Snapshot, last: bool = False) -> None:
        """Start writing step `step`; all ranks must call, after `ready`. The last one is not given up soon.

        The snapshot's memory is read until `ready` or `wait` says that the save is done.
        """
        self._job = _Job(step, snapshot, checkpoint.folder(self._run_url, step, self._number))
        threading.Thread(target=self._run, args=(self._job, last), name=f"save-{step}", daemon=True).start()

    def wait(self) -> None:
        """Wait for the save that is under way. Raises what went wrong, on every rank."""
        if self._job is not None:
            self._job.done.wait()
            self._job = None
        self.check()

    def check(self) -> None:
        """Report what went wrong in the background, and raise it if it was too much."""
        told, self._told = self._told, []
        for line in told if self._world.first else []:
            cli.say(f"warning: {line}")
        if self._attempt is not None:
            self._attempt.raise_if_fenced()
        if self._failure is not None:
            raise self._failure

    def _miss(self, why: str, counts: bool = True) -> None:
        self._told.append(why)
        self._missed += counts
        if self._missed > self._max_missed:
            self._failure = CheckpointError(
                f"{why}; that is {self._missed} in a row without a commit, more than train.max_missed_checkpoints "
                f"({self._max_missed})"
            )

    def _run(self, job: _Job, last: bool) -> None:
        try:
            self._save(job, last)
        except BaseException as error:  # raised again in the loop
            self._failure = error
        finally:
            job.done.set()

    def _save(self, job: _Job, last: bool) -> None:
        begin, pause = time.monotonic(), 1.0
        averages = self._collect(job.snapshot)
        while True:
            errors, again = self._try(job, averages)
            if not errors:
                self._missed, self.committed = 0, job.step
                break
            why = f"the checkpoint of step {job.step} in {job.url} was not committed: {'; '.join(errors)}"
            job.trouble = True
            over = last and time.monotonic() - begin > LAST_WAIT
            if any(distributed.gather(job.give_up or over or not again, self._group)):
                if last:
                    raise CheckpointError(why)
                self._miss(why)
                return
            self._told.append(f"{why}; it is tried again")
            deadline = time.monotonic() + pause
            while time.monotonic() < deadline and not job.give_up:
                time.sleep(0.02)
            pause = min(2 * pause, LONGEST_PAUSE)
        if self._keep.last:
            self._thin(job, averages, last)

    def _try(self, job: _Job, averages: dict[float, Tensor]) -> tuple[list[str], bool]:
        """Write what is not there yet, and COMMIT: what went wrong, and whether another try makes sense;
        the same on all ranks.
        """
        error = self._mark(job)
        try:
            if error is None:
                self._write_mine(job, averages)
        except Exception as caught:
            error = self._outcome(caught)
        mine = {
            "start": job.snapshot.start,
            "numel": job.snapshot.vectors["master"].numel(),
            "files": job.written,
            "error": error,
        }
        # to rank 0 alone, and from there: the entries of an average list the checksums of all its blocks
        ranks = sharing.to_first(mine, self._group)
        errors = [r["error"] for r in ranks if r["error"]]
        if not errors and self._world.first:
            try:
                self._commit(job, ranks)
            except Exception as caught:
                errors = [self._outcome(caught)]
        errors = sharing.from_first(errors, self._group)  # nobody goes on before COMMIT is there
        return [text for text, _ in errors], all(again for _, again in errors)

    def _mark(self, job: _Job) -> tuple[str, bool] | None:
        """Mark the folder as UNFINISHED before anything else is in it: what went wrong, the same on all ranks."""
        error = None
        if self._world.first and not job.marked:
            try:
                storage.write(storage.join(job.url, checkpoint.UNFINISHED), b"")
                job.marked = True
            except Exception as caught:
                error = self._outcome(caught)
        return sharing.from_first(error, self._group)  # type: ignore[no-any-return]

    def _outcome(self, error: Exception) -> tuple[str, bool]:
        """A sentence for an error of writing, and whether it may pass; what is not the store's doing is raised."""
        if isinstance(error, Fenced) or not isinstance(error, OSError | CheckpointError):
            raise error
        cause = str(error) if isinstance(error, CmdistError) else f"{type(error).__name__}: {error}"
        return f"rank {self._world.rank}: {cause}", isinstance(error, StoreError)

    def _collect(self, snapshot: Snapshot) -> dict[float, Tensor]:
        """The whole averages that this rank writes, which `owners` deals out."""
        if self._world.size == 1:
            return snapshot.averages
        whole = {}
        share = (
            max(distributed.gather(next(iter(snapshot.averages.values())).numel(), self._group))
            if snapshot.averages
            else 0
        )
        for i, (decay, values) in enumerate(snapshot.averages.items()):
            owner = self._owners[i % self._world.size]
            short = share - values.numel()  # only the last ranks have less, so all the padding lies behind the vector
            padded = torch.cat([values, values.new_zeros(short)]) if short else values
            room = torch.empty(self._world.size, share) if owner == self._world.rank else None
            dist.gather(padded, None if room is None else list(room), dst=owner, group=self._group)
            if room is not None:
                whole[decay] = room.view(-1)[: self._layout.total]
        return whole

    def _files(self, snapshot: Snapshot, averages: dict[float, Tensor]) -> dict[str, list[bytes | memoryview]]:
        """This rank's files by name."""
        described = of_slices(list(snapshot.vectors), snapshot.start, snapshot.vectors["master"].numel())
        slices = {self._slices(self._world.rank): checkpoint.pack(described[0], snapshot.vectors, described[1])}
        return slices | {
            checkpoint.ema_file(d): checkpoint.pack(self._tensors, values, {"decay": repr(d)})
            for d, values in averages.items()
        }

    @property
    def _tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(zip(self._layout.names, self._layout.shapes, strict=True))

    def _slices(self, rank: int) -> str:
        return f"slices-{rank:05d}-of-{self._world.size:05d}.safetensors"

    def _write_mine(self, job: _Job, averages: dict[float, Tensor]) -> None:
        for name, parts in self._files(job.snapshot, averages).items():
            if name not in job.written:
                self._write(job.url, job.written, name, parts)

    def _write(self, url: str, files: dict[str, Any], name: str, parts: Sequence[bytes | memoryview]) -> None:
        storage.write(storage.join(url, name), parts)
        files[name] = checkpoint.describe(parts)

    def _commit(self, job: _Job, ranks: list[dict[str, Any]]) -> None:
        kinds, emas = list(job.snapshot.vectors), list(job.snapshot.averages)
        state = job.snapshot.state | {
            "step": job.step,
            "world_size": self._world.size,
            "layout": [[name, list(shape)] for name, shape in self._tensors],
            "emas": emas,
            # where the numbers begin in each file, so that who reads a part of them need not read the headers of all
            "ema_data": {repr(d): len(checkpoint.header(self._tensors, {"decay": repr(d)})) for d in emas},
            "kinds": kinds,
            "slices": [
                {
                    "file": self._slices(i),
                    "start": r["start"],
                    "stop": r["start"] + r["numel"],
                    "data": len(checkpoint.header(*of_slices(kinds, r["start"], r["numel"]))),
                }
                for i, r in enumerate(ranks)
            ],
        }
        files = {name: entry for rank in ranks for name, entry in rank["files"].items()}
        job.state = json.dumps(migrations.STATE.stamp(state), indent=1).encode()
        self._write(job.url, files, "state.json", [job.state])
        commit = {
            "format": checkpoint.FORMAT,
            "run": self._run_id,
            "attempt": self._number,
            "step": job.step,
            "time": time.time(),
        }
        job.commit = job.commit or sealed.seal(
            commit | {"world_size": self._world.size, "block_size": checkpoint.BLOCK, "files": files}
        )
        if self._attempt is not None:
            self._attempt.check()
        sealed.write(storage.join(job.url, "COMMIT"), job.commit)
        with contextlib.suppress(OSError, CmdistError):  # it is committed, whatever becomes of these
            if self._attempt is not None:
                self._attempt.saved(job.step)
            storage.remove(storage.join(job.url, checkpoint.UNFINISHED))

    def _thin(self, job: _Job, averages: dict[float, Tensor], last: bool) -> None:
        """Read the new checkpoint back, each rank its own files,
        and remove what the rule leaves over once all of it is right.
        """
        problem = None
        try:
            self._verify_mine(job, averages)
        except (OSError, CmdistError) as error:
            problem = f"the checkpoint of step {job.step} could not be verified, so older ones stay: {error}"
        problems = [p for p in distributed.gather(problem, self._group) if p]
        if not problems and self._world.first:
            try:
                storage.write(storage.join(job.url, "VERIFIED"), b"")
                what = thinning(self._run_url, job.step, self._number, self._keep)
                try:
                    thin(what)
                except StoreDenied as error:
                    if last or not self._kept_by_store:  # at the first time, and how much it is at the end
                        problems = [refused(what, error)]
                    self._kept_by_store = True
            except (OSError, CmdistError) as error:
                problems = [f"old checkpoints could not be thinned out: {error}"]
        self._told += problems
        distributed.gather(None, self._group)

    def _verify_mine(self, job: _Job, averages: dict[float, Tensor]) -> None:
        files = self._files(job.snapshot, averages)
        if self._world.first:
            files["state.json"] = [job.state]
        entries = {name: checkpoint.describe(parts) for name, parts in files.items()}
        saved = Checkpoint(job.url, job.step, {"block_size": checkpoint.BLOCK, "files": entries})
        for name, parts in files.items():
            for left in reversed(range(REWRITES + 1)):
                try:
                    saved.verify([name])
                    break
                except Damaged:  # it suffered on the way, and is still in our memory
                    if not left:
                        raise
                    self._write(job.url, {}, name, parts)
