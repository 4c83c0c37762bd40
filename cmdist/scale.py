"""What a run would do on many ranks, by counts and a model: steps a second, what ranks wait for, and when they save.

python -m cmdist.scale > docs/scale.md         the page
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmdist import communication, gpus
from cmdist import config as configuration
from cmdist.communication import Network
from cmdist.config import Config
from cmdist.plan import Plan, plan

COPY = 25.0  # GB/s from a GPU to its host, of PCIe 4 or 5 in practice: an assumption
GB = 1e9
REPOSITORY = Path(__file__).parents[1]
RECIPES = ("cifar10", "imagenet64", "lsun_bedroom256", "lsun_cat256")
H100 = Network(8, 450.0, 50.0)  # NVLink 4 each way; 400 Gbit/s for a node, where some have one such card for each GPU


@dataclass(frozen=True)
class Scale:
    """Seconds of a step, and of a save."""

    ranks: int
    compute: float
    exposed: float  # what ranks tell each other, nothing of it hidden
    unshared: float  # the same at ZeRO 0, which has no weights to gather
    saving: float  # a checkpoint's copy to the host; what is written after that stops nobody
    images: int  # of a step

    @property
    def step(self) -> float:
        """With its share of nothing else."""
        return self.compute + self.exposed

    @property
    def rate(self) -> float:
        """Images a second, of all ranks."""
        return self.images / self.step


def scale(config: Config, costs: Plan, ranks: int, network: Network, peak_tflops: float, mfu: float) -> Scale:
    """Of a run with these counts, on GPUs with this peak and a part of it."""
    batch = config.train.global_batch
    compute = costs.flops * batch / ranks / (peak_tflops * 1e12 * mfu)

    def exposed(made: Config) -> float:
        return communication.seconds(communication.step(made, costs.parameters, ranks), ranks, network)

    unshared = exposed(configuration.replaced(config, {"train.zero_stage": 0}))
    return Scale(ranks, compute, exposed(config), unshared, costs.host_memory / (COPY * GB), batch)


def table(path: Path, network: Network = H100, gpu: str = "h100") -> Iterator[str]:
    """Markdown of a recipe, up to a rank for each micro-batch."""
    config = configuration.load(path)
    peak, mfu = gpus.gpu(gpu).peak(config.train.precision), gpus.gpu(gpu).utilisation or gpus.ASSUMED
    costs, most = plan(config, 1), config.micro_batches
    yield "| ranks | nodes | images each | step, s | of it exposed | at ZeRO 0 | images/s | of one rank's | save, s |"
    yield "|---|---|---|---|---|---|---|---|---|"
    alone = scale(config, costs, 1, network, peak, mfu)
    for ranks in dict.fromkeys([1, *(2**k for k in range(3, 20) if most % 2**k == 0 and 2**k <= most), most]):
        each = scale(config, plan_of(costs, ranks), ranks, network, peak, mfu)
        nodes, images = -(-ranks // network.node_gpus), config.train.global_batch // ranks
        share = each.rate / alone.rate / ranks
        unshared = each.unshared / (each.compute + each.unshared)
        yield (
            f"| {ranks} | {nodes} | {images} | {each.step:.3g} | {each.exposed / each.step:.1%} | {unshared:.1%} | "
            f"{each.rate:,.0f} | {share:.1%} | {each.saving:.2g} |"
        )


def plan_of(costs: Plan, ranks: int) -> Plan:
    """The counts of one rank, for more of them: a copy for a checkpoint is shared out."""
    return Plan(**{**vars(costs), "host_memory": costs.host_memory / ranks})


def page() -> Iterator[str]:
    """docs/scale.md but for the words that stand in it by hand."""
    for folder in RECIPES:
        for path in sorted((REPOSITORY / "configs" / folder).glob("*.yaml")):
            config = configuration.load(path)
            if config.micro_batches < 8:
                continue
            t = config.train
            yield f"### configs/{folder}/{path.name}"
            yield ""
            yield f"ZeRO {t.zero_stage}, {t.precision}, batch {t.global_batch:,}, micro-batches of {t.micro_batch}."
            yield ""
            yield from table(path)
            yield ""


if __name__ == "__main__":
    print("\n".join(page()))
