"""Parts that take training steps of the large recipes on made-up data: speed, memory, a profile, waits, self-check."""

import collections
import contextlib
import gc
import gzip
import math
import shutil
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks._trainer import filled, from_nothing, trainer_of
from benchmarks.first_hour import runs
from benchmarks.first_hour.schedule import REPOSITORY, Setup, Tell
from benchmarks.train import measure, take, timed
from torch.utils._python_dispatch import TorchDispatchMode

from cmdist import build
from cmdist import config as configuration
from cmdist.checkpoints.attempt import Attempt
from cmdist.config import Config
from cmdist.errors import CmdistError
from cmdist.kinds.objectives import OBJECTIVES
from cmdist.system import distributed
from cmdist.system.distributed import World
from cmdist.train.assembly import make_trainer

# of the shrunken networks; the kinds of layers are all there
SMALL = (
    *("network.model_channels=32", "network.channel_mult=[1,2]", "data.image_size=16"),
    *("network.attention_resolutions=[8]", "data.classes=0", "train.micro_batch=2"),
)
SMALL_UNET = ("network.num_res_blocks=1", "network.head_channels=32", "network.norm_groups=by_width")
SMALL_SONG = ("network.num_blocks=1",)
# LPIPS looks at 224 pixels, which takes a core seconds; one part asks for it again
NO_LPIPS = ("objective.distance.kind=l2",)
SMALLEST = ("network.channel_mult=[1]", "network.attention_resolutions=[]")  # of those that a core has to compile
_TIMES = "micro-batch x "
_CD = str(REPOSITORY / "configs/imagenet64/cd.yaml")
KNOWN = {"denoising", "consistency_distillation", "consistency_training"}


def step(setup: Setup, tell: Tell, recipe: str, *overrides: str) -> None:
    """images/s, MFU, and peak memory beside what --plan says."""
    config = load(setup, recipe, *overrides)
    with alone() as world:
        figures = measure(config, world, *((1, 1) if setup.small else (10, 4)))
    tell({key: figures[key] for key in ("images_per_second", "seconds_per_step", "mfu", "tflops", "micro_batch")})
    tell({key: figures[key] for key in ("seconds_to_make", "seconds_of_first_step")})
    tell({"peak GB": figures["peak_memory_gb"], "plan GB": figures["planned_memory_gb"], "all": figures})


def others(setup: Setup, tell: Tell) -> None:
    """A step of each objective that the configuration knows beside those with a part of their own."""
    new = [name for name in objectives() if name not in KNOWN]
    if not new:
        return tell({"not there": f"the objectives are {', '.join(objectives())}"})
    failed: list[str] = []
    with alone() as world:
        for name in new:
            if follows_a_run(name):
                tell({name: "left out: it follows a run, and none is made up"})
                continue
            try:
                figures = measure(of_kind(setup, name), world, *((1, 1) if setup.small else (6, 3)))
            except Exception as error:  # the others' figures are wanted all the same
                tell({name: f"{type(error).__name__}: {error}"})
                failed.append(name)
            else:
                keys = ("images_per_second", "mfu", "peak_memory_gb", "planned_memory_gb")
                tell({f"{name} {key}": figures[key] for key in keys})
            gc.collect()  # what one engine leaves behind must not count as the next one's
            torch.cuda.empty_cache()
    if failed:
        raise CmdistError(f"no figures of {', '.join(failed)}")


def recipes(setup: Setup, tell: Tell, *names: str) -> None:
    """images/s and MFU of several recipes, each in its own micro-batches and in eight times as many images."""
    with alone() as world:
        for name in names:
            for factor in ("micro-batch x 1", "micro-batch x 8"):
                config = load(setup, name, factor)
                figures = measure(config, world, *((1, 1) if setup.small else (8, 4)))
                short = f"{Path(name).stem} {figures['micro_batch']}"
                keys = ("images_per_second", "mfu", "peak_memory_gb", "planned_memory_gb")
                tell({f"{short} {key}": figures[key] for key in keys})
                gc.collect()
                torch.cuda.empty_cache()


def of_kind(setup: Setup, kind: str) -> Config:
    """The recipe of an objective for ImageNet-64; where none was published that of CD, with the objective of its digits
    recipe and what that tells the network of noise levels.
    """
    for path in sorted((REPOSITORY / "configs/imagenet64").glob("*.yaml")):
        if configuration.load(path).kind_name == kind:
            return load(setup, str(path))
    config = load(setup, _CD)
    for path in sorted((REPOSITORY / "configs/digits").glob("*.yaml")):
        if (small := configuration.load(path)).kind_name == kind:
            tree, theirs = config.model_dump(mode="json"), small.model_dump(mode="json")
            tree["objective"], tree["noise"] = theirs["objective"], theirs["noise"]
            told = ("time_factor", "fourier_scale", "double_norm", "second_time")
            tree["network"] |= {key: theirs["network"][key] for key in told}
            tree["init"] = theirs["init"]
            return from_nothing(Config.model_validate(tree))
    raise CmdistError(f"configs/ has no recipe of {kind}")


def follows_a_run(kind: str) -> bool:
    """Whether an objective keeps a run frozen beside its student."""
    return OBJECTIVES[kind].frozen is not None


def objectives() -> tuple[str, ...]:
    """The kinds of objective."""
    return tuple(OBJECTIVES)


def self_checks(setup: Setup, tell: Tell) -> None:
    """What the self-check finds, from the digits run of the part before and from an ADM-64 with non-zero layers."""
    refused: list[CmdistError] = []

    def note(name: str, config: Config, world: World) -> None:
        try:
            tell(checked(name, config, world, setup.out / "self-check"))
        except CmdistError as error:  # its number is what we are after, and the other one's
            tell({name: str(error)})
            refused.append(error)

    with alone() as world:  # one for both: DeepSpeed keeps the first process group
        if list((setup.out / "runs/edm/checkpoints").glob("step-*/COMMIT")):
            places = [f"objective.teacher={setup.out / 'runs/edm'}", f"data.url={runs.digits_data(setup)}"]
            small = runs.SMALL if setup.small else ()
            digits = configuration.load("configs/digits/cd.yaml", [*places, *small, "train.precision=bf16"])
            note("digits", digits, world)
        else:
            tell({"digits": "no teacher was trained"})
        with filled(load(setup, "configs/imagenet64/cd.yaml"), world.device) as config:
            note("ImageNet-64", config, world)
    if refused:
        raise refused[0]


def checked(name: str, config: Config, world: World, folder: Path) -> dict[str, float]:
    """What the self-check finds at the start of a run: the engine's difference, and that between passes of autograd (0
    if nobody had to know). Raises CmdistError where it refuses.
    """
    changed = {"global_batch": config.train.micro_batch, "self_check": True}
    config = config.model_copy(update={"train": config.train.model_copy(update=changed)})
    data = build.dataset(config)
    trainer, _, check = make_trainer(config, world, data, None, str(folder), "check", Attempt(str(folder), 1, None))
    trainer.batches.close()
    assert check is not None
    return {name: check.difference, f"{name}, autograd's passes": check.spread}


def profile(setup: Setup, tell: Tell, recipe: str) -> None:
    """Where the time of two steps goes; profile.txt, and a trace for a browser."""
    with alone() as world, trainer_of(load(setup, recipe), world) as trainer:
        cuda = world.device.type == "cuda"
        plain = timed(lambda: take(trainer), 1 if setup.small else 3, 1 if setup.small else 3, world.device)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(2):
                take(trainer)
            if cuda:
                torch.cuda.synchronize()
    averages = profiler.key_averages()
    column = "self_device_time_total" if cuda else "self_cpu_time_total"
    (setup.out / "profile.txt").write_text(averages.table(sort_by=column, row_limit=60, max_name_column_width=90))
    rows = sorted(averages, key=lambda row: -getattr(row, column))
    busy = sum(getattr(row, column) for row in averages if not cuda or row.device_type.name == "CUDA") / 2e6
    tell({"seconds per step": plain, "of it busy": busy / plain, "file": "profile.txt"})
    tell({"first": [[row.key[:90], getattr(row, column) / 2e6, row.count // 2] for row in rows[:20]]})
    if cuda:
        trace = setup.out / "trace.json"
        profiler.export_chrome_trace(str(trace))
        with trace.open("rb") as plain_file, gzip.open(f"{trace}.gz", "wb", compresslevel=3) as packed:
            shutil.copyfileobj(plain_file, packed)
        trace.unlink()


def waits(setup: Setup, tell: Tell, recipe: str) -> None:
    """Lines of ours and of DeepSpeed at which the host waits for the device in one step, and how often."""
    with alone() as world, trainer_of(load(setup, recipe), world) as trainer:
        take(trainer)
        with Waits(world.device) as counter:
            take(trainer)
    tell({"waits per step": sum(counter.places.values()), "places": dict(counter.places.most_common())})


class Waits(TorchDispatchMode):
    """Counts, by the line that asked for it, what makes the host wait: on GPUs all that torch's own mode warns of; on a
    CPU, where nothing waits, what would: values fetched as numbers, and masks whose true elements must be counted.
    """

    FETCHES = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
    INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.places: collections.Counter[str] = collections.Counter()
        self._cuda = device.type == "cuda"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Waits":
        if self._cuda:  # it sees copies, too
            self._stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            warnings.showwarning = self._warned
            torch.cuda.set_sync_debug_mode("warn")
            return self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
            self._stack.close()
        else:
            super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func._overloadpacket
        masked = kind in self.INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
        if masked or kind in self.FETCHES:
            self._note()
        return func(*args, **(kwargs or {}))

    def _warned(self, message: Warning | str, *rest: Any, **more: Any) -> None:
        if "synchronizing" in str(message):
            self._note()

    def _note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "torch/" not in frame.filename]
        between = (__file__, warnings.__file__)  # torch's warnings come through Python's
        frames = [frame for frame in frames if frame.filename not in between] or traceback.extract_stack()
        name = frames[-1].filename
        short = name.rpartition("site-packages/")[2].removeprefix(f"{REPOSITORY}/")
        self.places[f"{short}:{frames[-1].lineno} {frames[-1].line}"] += 1


def load(setup: Setup, recipe: str, *overrides: str) -> Config:
    """A recipe that starts from nothing if it can, shrunken for a CPU; 'micro-batch x 2' is an override, too."""
    plain = [override for override in overrides if "=" in override]
    small: list[str] = []
    if setup.small:
        whole = configuration.load(recipe)
        adm = configuration.by_key(whole)["network.kind"] == "adm"
        small = [*SMALL, *(SMALL_UNET if adm else SMALL_SONG)]
        small += [*(NO_LPIPS if whole.lpips else ()), *(SMALLEST if "train.compile=true" in plain else ())]
    config = from_nothing(configuration.load(recipe, [*small, *plain]))
    train = config.train
    factors = [int(override.removeprefix(_TIMES)) for override in overrides if override.startswith(_TIMES)]
    micro_batch = train.micro_batch * math.prod(factors)
    changed = {"micro_batch": micro_batch, "global_batch": micro_batch}
    return config.model_copy(update={"train": train.model_copy(update=changed)})


@contextlib.contextmanager
def alone() -> Iterator[World]:
    """A process group of one rank."""
    world = distributed.start()
    try:
        yield world
    finally:
        distributed.stop(world)
