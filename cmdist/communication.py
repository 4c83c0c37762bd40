"""What the ranks of a step tell each other, counted in calls and bytes, and how long that takes between nodes.

tests/multiprocess/test_collectives.py counts the real calls of 1, 2 and 4 ranks and compares.
"""

from dataclasses import dataclass

from cmdist.config import Config
from cmdist.train.flat import BUCKET

ALIGNMENT = 2  # elements: DeepSpeed pads the vector of all weights to a multiple of this times the ranks
GB = 1e9


@dataclass(frozen=True)
class Collective:
    """Calls of one kind in a step; `bytes` are those of the whole tensors, over all calls."""

    what: str
    kind: str  # all_reduce, all_gather
    calls: int | None  # None: as many as the order of the gradients makes buckets of
    bytes: int


@dataclass(frozen=True)
class Network:
    """GPUs of a node; GB/s that one GPU sends within its node and that one node sends to others, each way."""

    node_gpus: int
    intra: float
    inter: float


def step(config: Config, parameters: int, ranks: int) -> list[Collective]:
    """Of one optimizer step on `ranks` ranks, but for the log line; one rank tells nobody anything.

    Gradients are fp32, and reduced after the micro-batches of a step at ZeRO 0 and 1, after each at ZeRO 2.
    """
    if ranks == 1:
        return []
    stage, micro_batches = config.train.zero_stage, config.micro_batches // ranks
    times = micro_batches if stage == 2 else 1
    few = parameters <= BUCKET
    calls = times if few else None
    result = [Collective("gradients", "all_reduce", calls, 4 * parameters * times)]
    if stage:
        padded = -(-parameters // (ALIGNMENT * ranks)) * ALIGNMENT * ranks
        result.append(Collective("norm of the gradients", "all_reduce", 1, 4))
        result.append(Collective("weights", "all_gather", 1, 4 * padded))
    return [*result, Collective("request to stop", "all_reduce", 1, 8)]


def seconds(collectives: list[Collective], ranks: int, network: Network) -> float:
    """How long the transfers take in rings, first within nodes and then between them, each GPU of a node its share of
    the tensor; without latencies, and nothing hidden behind the computation, as DeepSpeed is asked to.
    """
    inside = min(ranks, network.node_gpus)
    nodes = ranks // inside
    total = 0.0
    for each in collectives:
        ways = 2 if each.kind == "all_reduce" else 1
        total += ways * each.bytes * (inside - 1) / inside / (network.intra * GB)
        total += ways * each.bytes * (nodes - 1) / nodes / (network.inter * GB)
    return total
