"""An evaluation by a configuration: what is asked for, with what the configuration says where nothing is."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from cmdist import build, guiding
from cmdist.build import Model
from cmdist.checkpoints.checkpoint import checksum
from cmdist.config import Config
from cmdist.core.guidance import Guidance
from cmdist.core.noise import Denoise, karras_sigmas
from cmdist.core.solvers import heun_step, integrate, mean_jump
from cmdist.data.images import ShardedImages
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import arithmetic, extractors, generation, measurement, real, records
from cmdist.evaluation.generation import Sampler
from cmdist.evaluation.metrics import table
from cmdist.evaluation.records import Evaluation, Images, Subject
from cmdist.guiding import Guide
from cmdist.models import TrainedRun
from cmdist.system import cli, distributed, storage
from cmdist.system.distributed import World
from cmdist.system.watchdog import Watchdog


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation; None takes what the configuration and the data set say."""

    n: int
    seed: int = 0
    batch: int = 1024  # images held on the device at once
    metrics: Sequence[str] | None = None
    steps: Sequence[str] | None = None
    times: Sequence[float] | None = None
    inception: str | None = None
    dinov2: str | None = None
    references: Sequence[str] = ()  # SPACE=FILE
    trusted: Sequence[str] = ()  # checksums, beside the configuration's
    guidance: Guidance = Guidance()
    guide: str | None = None  # the run or file of a worse model to guide away from
    searched: str | None = None  # the metric on which `times` were searched, which the protocol must say


def samplers(
    config: Config,
    denoise: Callable[..., Tensor],
    steps: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
    step: int | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    guide: Guide | None = None,
) -> list[Sampler]:
    """The ways to make images that were asked for, else the usual ones of the objective after so many steps of training
    (None: all), guided, by a worse model if there is a `guide`. Raises ConfigError.
    """
    noise = config.noise
    made = generation.samplers(
        guiding.guided(config, denoise, guidance, guide),
        steps or config.usual_steps(step),
        times or config.sampling.times,
        makes=config.kind.makes,
        n_steps=config.student_steps(step),
        ode_steps=config.sampling.ode_steps,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        rho=noise.rho,
    )
    if guidance.none:
        return made
    how = guiding.described(config, guidance, guide)
    return [dataclasses.replace(s, described=s.described | {"guidance": how}) for s in made]


def consistency(config: Config, denoise: Callable[..., Tensor]) -> Denoise | None:
    """What goes to sigma_min at once, if a model of the configuration's objective does."""
    if config.kind.makes == "jump":
        return lambda x, sigma, labels: mean_jump(
            denoise, x, sigma, labels, torch.full_like(sigma, config.noise.sigma_min)
        )
    return denoise if config.kind.makes == "consistency" else None


def to_sigma_min(config: Config, denoise: Callable[..., Tensor]) -> Denoise:
    """`consistency`, or the end point of a denoiser's ODE by Heun's method in sampling.ode_steps from the noise level
    (which is the same for all images).
    """
    jump = consistency(config, denoise)
    if jump is not None:
        return jump

    def end(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        level, n = float(sigma[0]), config.noise
        if level <= n.sigma_min:
            return x
        grid = karras_sigmas(config.sampling.ode_steps, n.sigma_min, level, n.rho)
        return integrate(heun_step, denoise, x, grid, labels)

    return end


def shape(config: Config) -> tuple[int, int, int]:
    """(C,H,W) of the configuration's images."""
    return config.data.channels, config.data.image_size, config.data.image_size


def present(config: Config, data: ShardedImages) -> tuple[int, ...]:
    """The classes of a conditional model that have images, if some have none: it has learnt nothing of those."""
    return data.present if config.data.classes else ()


def files(config: Config, request: Request) -> extractors.Files:
    """The command line's files, else the configuration's; what either trusts."""
    own = config.evaluation
    return extractors.Files(
        request.inception or own.inception, request.dinov2 or own.dinov2, [*own.trusted, *request.trusted]
    )


def check(config: Config, request: Request, step: int | None = None) -> None:
    """What is asked for can be measured after so many steps of training (None: all), as far as can be seen without
    weights or a device. Raises ConfigError, DataError.
    """
    data = build.dataset(config)
    by_space = extractors.spaces(request.metrics or extractors.usual(data))
    if not config.data.classes and (of_classes := table.need([*chain(*by_space.values())], "classes")):
        raise ConfigError(f"--metrics {of_classes[0]}: {config.run.name} has no classes (data.classes 0)")
    for option, file, used in (
        ("inception", request.inception, by_space.keys() - {"fd", "fd_dinov2"}),
        ("dinov2", request.dinov2, by_space.keys() & {"fd_dinov2"}),
    ):
        if file is not None and not used:
            raise ConfigError(
                f"--{option} does nothing for {', '.join(m for names in by_space.values() for m in names)}"
            )
    if request.times and request.steps and set(request.steps) <= {"1", "heun"}:
        raise ConfigError(f"--times does nothing with --steps {' '.join(request.steps)}")
    guiding.check(config, request.guidance, request.guide)
    samplers(config, lambda x, sigma, labels: x, request.steps, request.times, step)
    extractors.check_files(list(by_space), data, files(config, request))
    urls = dict(config.evaluation.references) | real.named(request.references, by_space)
    for space in by_space:
        if space in urls and not storage.exists(urls[space]):
            raise DataError(f"the reference statistics {urls[space]} are not there")


def measure_run(
    run: TrainedRun, request: Request, world: World, emas: Sequence[float] | None, tell: Callable[[str], object]
) -> None:
    """Figures of a checkpoint's averages (None: the first of train.ema), into the run's folder and its MLflow; all
    ranks must call. Raises CheckpointError, ConfigError, DataError.
    """
    url, config, subjects = run.checkpoint.url, run.config, []
    for ema in dict.fromkeys(emas or config.train.ema[:1]):
        denoise = build.load_denoiser(run, ema, world.device)
        source = {"url": url, "weights": run.checkpoint.weights_of(ema)}
        subjects.append(Subject(f"{config.run.name} step {run.step}, EMA {ema}", ema, denoise, source))
    run_url = url.rpartition("/checkpoints/")[0]
    with cli.before_start():
        evaluation = assembled(config, run_url, run.step, subjects, request, world)
    if world.first:  # retention keeps the averages of this step from now on
        storage.create(storage.join(evaluation.folder, f"step-{run.step:010d}.begun"), b"")
    shown = records.evaluate(evaluation, world, tell)
    if world.first:
        records.log(run_url, shown)


def measure_file(
    model: Model, file: str, folder: str, request: Request, world: World, tell: Callable[[str], object]
) -> None:
    """Figures of a file of weights, opened as `model`, into `folder`; all ranks must call.
    Raises ConfigError, DataError.
    """
    source = {"url": storage.absolute(file), "weights": f"xxh3:{checksum([storage.read(file)])}"}
    subject = Subject(model.title, None, model.denoiser(world.device), source)
    with cli.before_start():
        evaluation = assembled(model.config, storage.absolute(folder), 0, [subject], request, world)
    records.evaluate(evaluation, world, tell)


def assembled(
    config: Config, folder: str, step: int, subjects: Sequence[Subject], request: Request, world: World
) -> Evaluation:
    """All that is asked for, with what the configuration says of it; all ranks must call.
    Raises ConfigError, DataError.
    """
    data = build.dataset(config, world)
    by_space = extractors.spaces(request.metrics or extractors.usual(data))
    spaces = extractors.load(list(by_space), data, files(config, request), world.device)
    for extractor in spaces:
        measurement.check(request.n, extractor, by_space[extractor.space])
    guide = guiding.guide_of(config, request.guide, world)
    every = [
        (s, sampler.searched_on(request.searched) if request.searched else sampler)
        for s in subjects
        for sampler in samplers(config, s.denoise, request.steps, request.times, step or None, request.guidance, guide)
    ]
    references = {}
    if world.first:
        urls = dict(config.evaluation.references) | real.named(request.references, by_space)
        references = real.given(urls, spaces, by_space, config.data.image_size)
    images = Images(shape(config), config.data.classes, request.n, request.seed, request.batch, present(config, data))
    return Evaluation(
        storage.join(folder, "evaluations"),
        step,
        config.train.precision,
        every,
        images,
        spaces,
        by_space,
        data,
        references,
    )


@contextlib.contextmanager
def started(hang_minutes: float, look: Callable[[], object] = lambda: None) -> Iterator[World]:
    """The ranks of a measurement, none of which waits for another for ever, and which end together."""
    if not 0 < hang_minutes < 10**6:
        raise ConfigError("--hang-minutes must be above 0")
    with Watchdog(hang_minutes * 60, "--hang-minutes") as watchdog:
        world = distributed.start(watchdog.seconds + distributed.MARGIN, look)
        world = dataclasses.replace(world, alive=watchdog.feed)
        world.alive()
        set_up_process()
        with distributed.failing_together(world):
            yield world
            distributed.stop(world)


def set_up_process() -> None:
    """Make a process compute as evaluations do, so that the same weights and seeds give the same bits."""
    arithmetic.set_arithmetic()
    # the number of threads changes the last bits of an image; more cores are used by more ranks
    torch.set_num_threads(1)
