import torch
from torch import nn

from cmdist.checkpoints.layout import Layout, Piece, load_slice, overlap, read_slice, whole


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
