"""What a run would do and what it would cost, in words."""

import math

from torch import nn

from cmdist import communication, gpus
from cmdist import config as configuration
from cmdist.communication import Network
from cmdist.config import Config
from cmdist.errors import ConfigError
from cmdist.plan import Plan, plan
from cmdist.scale import COPY, scale
from cmdist.system.texts import counted

FIXED = (
    "train.micro_batch belongs to the run's identity: no start after the first can change it, so choose it now, by "
    "this plan or by pipelines/benchmark.py train"
)


def print_dry_run(config: Config, net: nn.Module, ranks: int) -> None:
    """The resolved configuration and what it means."""
    t = config.train
    print(configuration.dump(config), end="")
    print(f"# parameters: {sum(p.numel() for p in net.parameters()):,}")
    share = config.micro_batches // ranks
    print(
        f"# micro-batches per rank and step: {share} ({config.micro_batches} of "
        f"{counted(t.micro_batch, 'image')} over {counted(ranks, 'rank')})"
    )
    print(f"# images to be seen: {t.steps * t.global_batch:,}")


def print_plan(
    config: Config,
    ranks: int,
    name: str,
    gpu_memory: float | None,
    peak_tflops: float | None,
    mfu: float | None,
    network: Network | None = None,
) -> None:
    """What the run would cost on GPUs of a name, of which the other arguments may say something else; with a `network`
    also what its ranks tell each other.
    """
    t, gpu = config.train, gpus.gpu(name)
    gpu_memory = gpu.memory if gpu_memory is None else gpu_memory
    peak_tflops = gpu.peak(t.precision) if peak_tflops is None else peak_tflops
    measured = gpu.utilisation if mfu is None else None
    mfu = mfu if mfu is not None else gpu.utilisation or gpus.ASSUMED
    for option, value, most in (
        ("gpu-memory", gpu_memory, math.inf),
        ("peak-tflops", peak_tflops, math.inf),
        ("mfu", mfu, 1.0),
    ):
        if not 0 < value <= most or math.isinf(value):
            raise ConfigError(
                f"--{option} {value:g}: a number above 0{'' if math.isinf(most) else f' and up to {most:g}'} is needed"
            )
    costs = plan(config, ranks)
    share = config.micro_batches // ranks
    hours = costs.gpu_hours(peak_tflops, mfu)
    each = f"ZeRO {t.zero_stage}, {t.precision}, {share} x {counted(t.micro_batch, 'image')}"
    print(f"plan of {config.run.name} on {counted(ranks, f'{name.upper()} GPU')} of {gpu_memory:g} GB: {each}")
    print("\nmemory of each GPU                      GB")
    for part, size in costs.memory.items():
        print(f"  {part:<34} {size / 1e9:>6.2f}")
    fits = costs.total_memory / 1e9 <= gpu_memory
    advice = "fits" if fits else "does not fit: lower train.micro_batch, or set network.checkpoint_activations=true"
    print(f"  {'together':<34} {costs.total_memory / 1e9:>6.2f}  {advice}")
    print(f"host memory of a checkpoint's copy    {costs.host_memory / 1e9:>6.2f}  GB, each rank")
    print(f"\nparameters                            {costs.parameters:,}")
    print(f"forward pass                          {costs.forward_flops / 1e9:,.1f} GFLOP an image")
    print(
        f"training                              {costs.flops / 1e12:,.3f} TFLOP an image, "
        f"{costs.flops * t.global_batch / 1e12:,.0f} a step"
    )
    print(
        f"memory traffic                        {sum(costs.touched.values()) / 1e9:,.1f} GB a micro-batch, "
        "if nothing is compiled:"
    )
    print("\n".join(f"  {kind:<34} {size / 1e9:>8,.1f}" for kind, size in costs.touched.items() if size))
    print(f"  once a step, moving the weights    {costs.update / 1e9:>8,.1f}")
    print(f"images to be seen                     {costs.images:,} in {counted(t.steps, 'step')} of {t.global_batch:,}")
    days = f"{hours / ranks / 24:,.1f} days on {counted(ranks, 'GPU')}"
    print(f"GPU-hours                             {hours:,.0f}, {days},")
    print(
        f"                                      if {mfu:.0%} of {peak_tflops:g} TFLOP/s are reached: "
        + ("as was measured" if measured else f"an assumption, not a measurement on {name.upper()}s")
    )
    if network is not None:
        _print_scale(config, costs, ranks, network, peak_tflops, mfu)
    print(f"\n{FIXED}")


def _print_scale(config: Config, costs: Plan, ranks: int, network: Network, peak_tflops: float, mfu: float) -> None:
    """What a step sends, how long ranks wait for it, what a node reads, and how long a save stops them."""
    nodes = -(-ranks // network.node_gpus)
    if ranks > network.node_gpus and ranks % network.node_gpus:
        raise ConfigError(f"--ranks {ranks} must be whole nodes of --node-gpus {network.node_gpus}, or one node")
    each = scale(config, costs, ranks, network, peak_tflops, mfu)
    inside, rates = min(ranks, network.node_gpus), f"{network.intra:g} GB/s within, {network.inter:g} between"
    print(f"\na step on {counted(nodes, 'node')} of {counted(inside, 'GPU')} ({rates})")
    for sent in communication.step(config, costs.parameters, ranks):
        print(f"  {sent.what:<34} {sent.bytes / 1e6:>8,.1f}  MB by {sent.kind}")
    share = each.exposed / each.step
    print(f"exposed communication                 {each.exposed:.3g} of {each.step:.3g} s, {share:.1%}")
    images, pixels = each.rate / nodes, config.data.channels * config.data.image_size**2
    print(f"reading, each node                    {images:,.0f} images/s, {images * pixels / 1e6:,.1f} MB/s of pixels")
    between = config.train.checkpoint_every * each.step
    print(
        f"a save stops the ranks for            {each.saving:.2g} s at {COPY:g} GB/s, every {between / 60:,.1f} min: "
        f"{each.saving / between:.2%}"
    )
