"""Distances against their formulas written out, LPIPS around a stand-in network."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from cmdist.core import distances

X = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def network(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("distance", "formula"),
    [
        (distances.l1, lambda d: sum(map(abs, d)) / len(d)),
        (distances.l2, lambda d: sum(v * v for v in d) / len(d)),
        (
            distances.pseudo_huber(0.03),
            lambda d: sqrt(sum(v * v for v in d) + 0.03**2) - 0.03,
        ),  # of the whole image, not pixel by pixel
        (distances.pseudo_huber(2.0), lambda d: sqrt(sum(v * v for v in d) + 4) - 2),
    ],
)
def test_distances_are_their_formulas(distance: distances.Distance, formula) -> None:
    found = distance(X, Y)
    assert found.shape == (5,)
    assert found.tolist() == pytest.approx([formula(d) for d in (X - Y).flatten(1).tolist()], rel=1e-5)


@pytest.mark.parametrize(
    "distance",
    [distances.l1, distances.l2, distances.pseudo_huber(0.03), distances.lpips(network)],
    ids=["l1", "l2", "pseudo_huber", "lpips"],
)
def test_a_distance_is_symmetric_and_zero_at_equality_with_finite_gradient(distance: distances.Distance) -> None:
    torch.testing.assert_close(distance(X, Y), distance(Y, X), rtol=1e-6, atol=0)
    x = X.clone().requires_grad_()
    zero = distance(x, X)
    assert zero.abs().max() < 1e-8
    assert (distance(X, Y) > 0).all()
    (gradient,) = torch.autograd.grad(zero.sum(), x)
    assert gradient.abs().max() == 0  # and not NaN


@pytest.mark.parametrize(("shape", "c"), [((3, 32, 32), 0.02993), ((3, 64, 64), 0.05986), ((1, 8, 8), 0.00432)])
def test_huber_c_has_the_papers_values(shape: tuple[int, ...], c: float) -> None:
    assert distances.huber_c(shape) == pytest.approx(c, abs=1e-5)  # .03 for CIFAR-10 and .06 for ImageNet-64


@pytest.mark.parametrize(("size", "resized"), [(8, 224), (64, 224), (224, 224), (255, 224), (256, 256), (300, 300)])
def test_lpips_resizes_below_256_only(size: int, resized: int) -> None:
    x, y = torch.randn(1, 3, size, size), torch.randn(1, 3, size, size)

    def check(a: Tensor, b: Tensor) -> Tensor:
        for given, original in ((a, x), (b, y)):
            wanted = original
            if size < 256:
                wanted = torch.nn.functional.interpolate(
                    original, size=(224, 224), mode="bilinear", align_corners=False, antialias=False
                )
            assert given.shape == (1, 3, resized, resized)
            assert torch.equal(given, wanted)
        return network(a, b)

    assert distances.lpips(check)(x, y).shape == (1,)


@pytest.mark.parametrize("shape", [(), (1, 1, 1), (1, 224, 224)])
def test_lpips_averages_what_the_network_returns(shape: tuple[int, ...]) -> None:
    values = torch.arange(2.0)
    found = distances.lpips(lambda x, y: values.view(2, *(1,) * len(shape)).expand(2, *shape))(X[:2], Y[:2])
    assert found.tolist() == [0.0, 1.0]


def test_lpips_runs_in_fp32_under_autocast_and_for_half_images() -> None:
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(2))

    def convolve(x: Tensor, y: Tensor) -> Tensor:
        a, b = (torch.nn.functional.conv2d(v, weight) for v in (x, y))
        assert a.dtype == torch.float32
        return (a - b).square()

    plain = distances.lpips(convolve)(X, Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.conv2d(X, weight).dtype == torch.bfloat16  # autocast is on
        assert torch.equal(distances.lpips(convolve)(X, Y), plain)
        assert torch.nn.functional.conv2d(X, weight).dtype == torch.bfloat16  # and on again
    assert distances.lpips(convolve)(X.bfloat16(), Y.bfloat16()).dtype == torch.float32


def test_lpips_lets_gradient_through() -> None:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distances.lpips(network)(x, Y).sum(), x)
    assert gradient.abs().min() > 0
