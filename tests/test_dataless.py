"""Tensors without data against torch's own fake ones: the same operations on the same shapes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cmdist import config, plan
from cmdist.dataless import Dataless, Shape

CONFIGS = Path(__file__).parent.parent / "configs"
LOW = ("train.precision=bf16", "network.checkpoint_activations=true")


def counts(made: config.Config) -> list[Any]:
    """All that a plan takes from its micro-batch."""
    return [[count.flops, count.peak, count.now, count.touched] for count in plan._micro_batch(made, None)]


@pytest.mark.parametrize(
    ("name", "keys"),
    [("mean_flow", ()), ("cd", LOW)]
    + [
        pytest.param(path.stem, keys, marks=pytest.mark.slow)
        for path in sorted((CONFIGS / "digits").glob("*.yaml"))
        for keys in ((), LOW)
    ],
)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_counts_are_those_of_torchs_fake_tensors(
    name: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        made = config.load(CONFIGS / "digits" / f"{name}.yaml", ["train.micro_batch=4", *keys])
    except config.ConfigError as error:  # a gradient through a derivative cannot be computed again
        assert "checkpoint_activations" in str(error)
        return
    ours = counts(made)
    monkeypatch.setattr(plan, "Dataless", lambda: FakeTensorMode(allow_non_fake_inputs=True))
    assert counts(made) == ours and all(count[0] > 0 for count in ours)


def test_a_tensor_keeps_its_memory_as_long_as_a_view_of_it() -> None:
    with Dataless(), plan.Counter() as counter:
        whole = torch.zeros(64, 32)
        assert isinstance(whole, Shape) and whole.device.type == "cpu"
        part = whole.view(-1)[:8]
        del whole
        assert counter.now == 4 * 64 * 32
        part += 1
        assert counter.now == 4 * 64 * 32 and part.shape == (8,)
        del part
    assert counter.now == 0 and counter.peak == 4 * 64 * 32


def test_autocast_is_the_cpus_and_tensors_from_outside_lose_their_data() -> None:
    outside = torch.ones(2, 3)
    with Dataless(), torch.autocast("cpu", torch.bfloat16):
        product = outside @ torch.ones(3, 4)
        assert product.dtype == torch.bfloat16 and (product + 1.0).shape == (2, 4)
    with pytest.raises(RuntimeError, match="its tensor has no data"):
        product.sum()


def test_a_module_is_copied_with_its_parameters() -> None:
    with Dataless():
        net = torch.nn.Linear(3, 2)
        twin = copy.deepcopy(net)
        assert isinstance(twin.weight, torch.nn.Parameter) and twin.weight is not net.weight
        assert twin.weight.requires_grad and twin.weight.shape == (2, 3)
