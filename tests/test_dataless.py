"""Tensors without data against torch's own fake ones: the same FLOPs, memory and bytes by kind of operation."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from cmdist import config, plan
from cmdist.dataless import Dataless, Shape
from cmdist.nets.lpips import Lpips

CONFIGS = Path(__file__).parent.parent / "configs"
LOW = ("train.precision=bf16", "network.checkpoint_activations=true")
LAST = ("train.precision=bf16", "network.channels_last=true")


def counts(made: config.Config) -> list[Any]:
    """All that a plan takes from its micro-batch."""
    perceptual = Lpips("max", made.lpips.precision) if made.lpips else None
    return [[count.flops, count.peak, count.now, count.touched] for count in plan._micro_batch(made, perceptual)]


@pytest.mark.parametrize(
    ("name", "keys"),
    [("digits/mean_flow", ()), ("digits/cd", LOW), ("digits/ct", LAST)]
    + [
        pytest.param(f"digits/{path.stem}", keys, marks=pytest.mark.slow)
        for path in sorted((CONFIGS / "digits").glob("*.yaml"))
        for keys in ((), LOW, LAST)
    ]
    + [pytest.param("cifar10/cd", LOW, marks=pytest.mark.slow)],  # with LPIPS
)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_counts_are_those_of_torchs_fake_tensors(
    name: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        made = config.load(CONFIGS / f"{name}.yaml", ["train.micro_batch=4", *keys])
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


def test_what_it_does_not_follow_is_refused() -> None:
    with Dataless():
        with pytest.raises(RuntimeError, match=r"aten.unsqueeze_.default would change what a tensor without data is"):
            torch.ones(3).unsqueeze_(0)
        with pytest.raises(RuntimeError, match="the data of a tensor without data was replaced"):
            torch.nn.Linear(3, 2).bfloat16()(torch.ones(1, 3))


def test_zeros_of_tangents_stay_marked() -> None:
    with Dataless():
        zeros = torch._efficientzerotensor(3)
        assert zeros._is_zerotensor() and (zeros * 2)._is_zerotensor() and zeros.view(1, 3)._is_zerotensor()
        assert not (zeros + torch.ones(3))._is_zerotensor()
        with forward_ad.dual_level():
            half = forward_ad.make_dual(torch.ones(3), torch._efficientzerotensor(3)) / 2
            assert forward_ad.unpack_dual(half).tangent.shape == (3,)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolutions_output_has_the_format_of_its_input(channels: int) -> None:
    images, weight = torch.zeros(2, channels, 8, 8), torch.zeros(4, channels, 3, 3)
    for given in (images, images.to(memory_format=torch.channels_last)):
        real = torch.nn.functional.conv2d(given, weight)
        with Dataless():
            assert torch.nn.functional.conv2d(given, weight).stride() == real.stride()


def test_a_module_is_copied_with_its_parameters() -> None:
    with Dataless():
        net = torch.nn.Linear(3, 2)
        twin = copy.deepcopy(net)
        assert isinstance(twin.weight, torch.nn.Parameter) and twin.weight is not net.weight
        assert twin.weight.requires_grad and twin.weight.shape == (2, 3)
        assert copy.deepcopy(torch.zeros(3, requires_grad=True)).requires_grad
