"""From a configuration to a trainer: every object that a run needs, at the step where it starts."""

from collections.abc import Mapping

import torch

import cmdist
from cmdist import build, pins, seeding
from cmdist import config as configuration
from cmdist.checkpoints.attempt import Attempt
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.saver import Saver
from cmdist.config import Config
from cmdist.core.objectives.base import Networks
from cmdist.data.images import ShardedImages
from cmdist.data.order import Order, schedule
from cmdist.data.reader import micro_batches
from cmdist.pins import Pin
from cmdist.runs import Weights
from cmdist.system.distributed import StopRequest, World
from cmdist.train import resume
from cmdist.train.averages import Averages, Copy
from cmdist.train.engine import Engine
from cmdist.train.meters import Clock, SigmaBuckets
from cmdist.train.optim import make_optimizer
from cmdist.train.selfcheck import Checked
from cmdist.train.snapshots import Snapshots
from cmdist.train.trainer import Schedule, Trainer


def make_trainer(
    config: Config,
    world: World,
    data: ShardedImages,
    found: Checkpoint | None,
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
    net, weights = build.network(config).to(world.device), Weights(world)
    if found is None:
        build.initialise(opened, net, weights)
    copies = {"target": Copy(net, build.lowered(net))} if build.needs_target(config) else {}
    for module in (net, *(each.called for each in copies.values())):
        build.compiled(config, module)
    optimizer = make_optimizer(o.kind, net.parameters(), betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    engine = Engine(
        net,
        optimizer,
        zero_stage=t.zero_stage,
        micro_batch=t.micro_batch,
        accumulation=config.micro_batches // world.size,
        clip=o.clip,
        loss_scale=t.loss_scale if t.precision == "fp16" else None,
    )
    step = found.step if found else 0
    objective = build.objective(config, build.distance(config, world.device, world))
    networks = Networks(
        student=build.model(config, engine),
        target=build.model(config, copies["target"].module) if "target" in copies else None,
        teacher=build.teacher(opened, data, world.device, weights),
        bare_student=build.model(config, engine.module),
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
    averages = Averages(engine, t.ema)
    trainer = Trainer(
        world=world,
        seed=config.run.seed,
        schedule=Schedule(t.steps, t.log_every, t.checkpoint_every, t.global_batch, t.hang_minutes * 60),
        engine=engine,
        objective=objective,
        networks=networks,
        conditional=bool(config.data.classes),
        learning_rate=build.lr_schedule(config),
        averages=averages,
        copies=copies,
        batches=batches,
        buckets=SigmaBuckets(config.noise.sigma_min, config.noise.sigma_max, world.device),
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
    if found is not None:
        resume.load(found, engine, trainer.averages, copies)
        trainer.clock = Clock.resumed(found.state["clock"], world.size)
    return trainer, order, checked
