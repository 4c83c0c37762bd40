import torch
from torch import nn

from cmdist import build, config
from cmdist.nets.undrawn import Undrawn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.register_buffer("frequencies", torch.zeros(2).normal_(), persistent=False)


def test_parameters_are_not_drawn_and_buffers_are():
    torch.manual_seed(0)
    plain = torch.get_rng_state()
    with Undrawn():
        net = Net()
    assert net.get_buffer("frequencies").any()
    torch.set_rng_state(plain)
    assert torch.equal(torch.zeros(2).normal_(), net.get_buffer("frequencies"))  # nothing else was drawn
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


def test_a_network_with_weights_from_elsewhere_is_the_same(monkeypatch):
    c = config.load("configs/digits/cd.yaml", ["objective.teacher=x"])
    weights = {name: torch.randn_like(value) for name, value in build.network(c).state_dict().items()}
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 3.0]), torch.tensor([1, 2])
    made = build.ready(c, weights, "here", "cpu")(x, sigma, labels)
    monkeypatch.setattr(build, "Undrawn", torch.no_grad)
    assert torch.equal(made, build.ready(c, weights, "here", "cpu")(x, sigma, labels))
