"""From a configuration to a trainer: every object that a run needs, at the step where it starts."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

import cmdist
from cmdist import build, pins, seeding, teachers
from cmdist import config as configuration
from cmdist.checkpoints.attempt import Attempt
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.checkpoints.layout import network_of
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver
from cmdist.config import Config
from cmdist.core.noise import Denoise
from cmdist.core.objectives.base import Networks
from cmdist.core.preconditioning import Model
from cmdist.data.images import ShardedImages
from cmdist.data.order import Order, schedule
from cmdist.data.reader import micro_batches
from cmdist.errors import ConfigError
from cmdist.models import Weights
from cmdist.pins import Pin
from cmdist.system.distributed import StopRequest, World
from cmdist.train import resume
from cmdist.train.averages import Averages, Copy
from cmdist.train.engine import Engine
from cmdist.train.meters import Clock, FirstNotFinite, SigmaBuckets
from cmdist.train.optim import make_optimizer
from cmdist.train.selfcheck import Checked
from cmdist.train.snapshots import Snapshots
from cmdist.train.trainer import Schedule, Trainer


def make_trainer(
    config: Config,
    world: World,
    data: ShardedImages,
    checkpoint: Checkpoint | None,
    run_url: str,
    run_id: str,
    attempt: Attempt,
    measured: Mapping[str, str] | None = None,
    pinned: Mapping[str, Pin] | None = None,
) -> tuple[Trainer, Order, Checked | None]:
    """Everything a run needs, at the step where it starts; the order of its samples, and the result of the
    self-check. `measured`: hashes of what is learned from; `pinned`: the weights that it begins with and follows.
    """
    t, o = config.train, config.optimizer
    opened = pins.opened_at(config, pinned or {})
    build.set_arithmetic(config)
    torch.manual_seed(seeding.key(config.run.seed, "weights"))
    module = build.trained(config).to(world.device)
    weights = Weights(world)
    if checkpoint is None:
        build.initialise(opened, network_of(module), weights)
    copies = {"target": Copy(module, build.lowered(module))} if build.needs_target(config) else {}
    guide = teachers.guide(opened, data, world.device, weights)
    teacher = None if guide is None else guide(config.guidance.fixed)
    if config.kind.teacher_is_student:  # then its weights are a part of the run's state
        copies["teacher"], teacher = changing_teacher(config, teacher, module)
    for each in (module, *(one.called for one in copies.values())):
        build.compiled(config, network_of(each))
    optimizer = make_optimizer(
        o.kind, module.parameters(), betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, compiled=t.compile
    )
    engine = Engine(
        module,
        optimizer,
        zero_stage=t.zero_stage,
        micro_batch=t.micro_batch,
        accumulation=config.micro_batches // world.size,
        clip=o.clip,
        loss_scale=t.loss_scale if t.precision == "fp16" else None,
    )
    step = checkpoint.step if checkpoint else 0
    objective = build.objective(config, lambda keys: build.distance(config, keys, world.device, world))
    networks = Networks(
        student=build.model(config, engine),
        target=build.model(config, network_of(copies["target"].called)) if "target" in copies else None,
        teacher=teacher,
        bare_student=build.model(config, network_of(engine.module)),
        frozen=teachers.frozen(opened, world.device, weights),
        extra=getattr(engine.module, "extra", None) if config.kind.extra else None,
    )
    order = Order(data.counts, config.run.seed, config.data.block_shards)
    batches = micro_batches(
        data,
        order,
        t.micro_batch,
        schedule(step, config.micro_batches, world.rank, world.size),
        config.run.seed,
        flip=config.data.flip,
        workers=config.data.workers,
        bad_samples=config.data.bad_samples,
    )
    averages = Averages(engine, t.ema, t.global_batch, t.ema_ramp_up)
    trainer = Trainer(
        world=world,
        seed=config.run.seed,
        schedule=Schedule(t.steps, t.log_every, t.checkpoint_every, t.global_batch),
        engine=engine,
        objective=objective,
        networks=networks,
        conditional=bool(config.data.classes),
        label_dropout=t.label_dropout,
        guide=guide if config.guidance.range else None,
        guidance=config.guidance,
        learning_rate=build.lr_schedule(config),
        averages=averages,
        copies=copies,
        batches=batches,
        buckets=SigmaBuckets(config.noise.sigma_min, config.noise.sigma_max, world.device),
        not_finite=FirstNotFinite(world.device),
        clock=Clock(devices=world.size),
        snapshots=Snapshots(engine, averages, copies),
        saver=Saver(
            run_url,
            run_id,
            engine.layout,
            world,
            attempt=attempt,
            keep=Keep(t.keep_checkpoints, t.keep_every),
            max_missed=t.max_missed_checkpoints,
        ),
        tracker=None,
        describe={
            "config": configuration.written(config),
            "measured": dict(measured or {}),
            "pins": dict(pinned or {}),
            "zero_stage": t.zero_stage,
            "code_version": cmdist.__version__,
        },
        stop=StopRequest(),
        step=step,
    )
    checked = trainer.self_check(beta1=o.betas[0], clip=o.clip, weight_decay=o.weight_decay) if t.self_check else None
    if checkpoint is not None:
        resume.load(checkpoint, engine, trainer.averages, copies)
        trainer.clock = Clock.resumed(checkpoint.state["clock"], world.size)
    return trainer, order, checked


def changing_teacher(config: Config, first: Denoise | None, module: nn.Module) -> tuple[Copy, Denoise]:
    """A teacher that takes the student's weights now and then, with those of `first`. Raises ConfigError."""
    if not (isinstance(first, Model) and isinstance(first.net, nn.Module)):
        raise ConfigError(f"objective.teacher {config.teacher}: its weights are needed, of a run or of a file")
    begun = copy.deepcopy(module)
    network_of(begun).load_state_dict(first.net.state_dict())
    teacher = Copy(begun, build.lowered(begun).eval())
    return teacher, build.model(config, network_of(teacher.called))
