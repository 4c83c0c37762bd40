import pytest
import torch
from torch import nn

from cmdist.checkpoints.layout import (
    Layout,
    Piece,
    Trained,
    load_slice,
    network_of,
    overlap,
    read_slice,
    refuse_untrained,
    weights_of_network,
    whole,
)
from cmdist.errors import ConfigError


def test_the_vector_runs_through_the_parameters_in_order() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    layout = Layout.of(module)
    assert layout.names == ("0.weight", "0.bias", "1.weight")
    assert layout.starts == (0, 6, 8)
    assert layout.total == 10


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert Layout.of(module).names == ("weight",)


def test_slices_of_any_cut_put_the_vector_together_again() -> None:
    layout = Layout.make([("a", (2, 3)), ("b", (4,)), ("c", (5, 1))])
    tensors = [torch.randn(shape) for shape in layout.shapes]
    vector = torch.cat([t.view(-1) for t in tensors])
    for cut in range(layout.total + 1):
        parts = [
            read_slice(overlap(whole(layout, tensors), *bounds), "cpu") for bounds in ((0, cut), (cut, layout.total))
        ]
        assert torch.equal(torch.cat(parts), vector)
        others = [torch.zeros(shape) for shape in layout.shapes]
        load_slice(whole(layout, others), cut, vector[cut:])
        load_slice(whole(layout, others), 0, vector[:cut])
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_overlap_gives_views() -> None:
    memory = torch.zeros(10)
    (piece,) = overlap([Piece(5, memory)], 7, 9)
    piece.tensor.fill_(1.0)
    assert memory.nonzero().view(-1).tolist() == [2, 3]


class Head(nn.Module):
    """Something that is trained beside a network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def test_what_is_trained_beside_a_network_comes_after_it_and_leaves_its_names() -> None:
    net = nn.Linear(2, 2)
    alone, together = Layout.of(net), Layout.of(Trained(net, Head()))
    assert together.names == (*alone.names, "extra.weight")
    assert together.starts[: len(alone.starts)] == alone.starts and together.total == alone.total + 3
    weights = dict.fromkeys(together.names, torch.zeros(1))
    assert tuple(weights_of_network(weights)) == alone.names
    x = torch.randn(1, 2)
    assert torch.equal(Trained(net, Head())(x), net(x)) and network_of(Trained(net, Head())) is net


@pytest.mark.parametrize("spoilt", ["buffer", "frozen"])
def test_a_state_that_no_checkpoint_would_hold_is_refused(spoilt: str) -> None:
    net = nn.Linear(2, 2)
    refuse_untrained(net)
    net.register_buffer("table", torch.zeros(2), persistent=False)
    refuse_untrained(net)
    if spoilt == "buffer":
        net.register_buffer("mean", torch.zeros(2))
    else:
        net.bias.requires_grad_(False)
    with pytest.raises(
        ConfigError, match=rf"'{'mean' if spoilt == 'buffer' else 'bias'}' of the network is no trained"
    ):
        refuse_untrained(net)
