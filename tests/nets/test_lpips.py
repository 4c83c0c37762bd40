"""LPIPS against the lpips package itself, with random VGG weights: the real ones cannot be assumed to be here."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmdist.core import distances
from cmdist.errors import ConfigError
from cmdist.nets import torchvision_ops
from cmdist.nets.lpips import Lpips, fingerprint, load_lpips
from vgg import CONVOLUTIONS, write_vgg

torchvision_ops.declare_missing()
GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(2, 3, 32, 32, generator=GENERATOR).clamp(-1, 1) for _ in range(2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vgg(tmp_path_factory.mktemp("vgg") / "vgg16.pth")


def package(weights: Path, pooling: str) -> Any:
    """The package's own network with the same weights, and the average for the maximum if asked for."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = torch.load(weights, weights_only=True)
    own = network.net.state_dict()
    network.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in own})
    if pooling == "avg":
        for name, layer in list(network.net.named_modules()):
            if isinstance(layer, nn.MaxPool2d):
                part, number = name.split(".")
                setattr(getattr(network.net, part), number, nn.AvgPool2d(2, 2))
    return network


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_values_and_gradients_are_the_packages(weights: Path, pooling: Any) -> None:
    ours, theirs = load_lpips(weights, pooling), package(weights, pooling)
    x, x2 = X.clone().requires_grad_(), X.clone().requires_grad_()
    found, expected = ours(x, Y), theirs(x2, Y).reshape(-1)
    assert (expected > 0.01).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(expected.sum(), x2)[0], rtol=1e-3, atol=1e-7
    )


def test_a_file_in_the_format_before_zip_is_read(weights: Path, tmp_path: Path) -> None:
    """torchvision's file is of 2017; torch has written zip files since 2020."""
    old = write_vgg(tmp_path / "vgg16-397923af.pth", zipped=False)
    assert not zipfile.is_zipfile(old) and zipfile.is_zipfile(weights)
    assert torch.equal(load_lpips(old, "avg")(X, Y), load_lpips(weights, "avg")(X, Y))


def test_pooling_matters(weights: Path) -> None:
    assert not torch.allclose(load_lpips(weights, "max")(X, Y), load_lpips(weights, "avg")(X, Y), rtol=1e-2)


def test_the_gradient_is_finite_where_features_vanish(weights: Path) -> None:
    """The package's is not: sqrt' of a sum of squares that underflows to 0 is infinite, and features above 0 let it
    pass.
    """
    ours, theirs = load_lpips(weights, "avg"), package(weights, "avg")
    for network in (ours, theirs):
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.data.zero_()
                module.weight.data.mul_(1e-25 if module.in_channels == 3 else 1.0)
    results = []
    for network in (ours, theirs):
        x = X[:1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x, Y[:1]).sum(), x)
        results.append(gradient)
    assert results[0].isfinite().all()
    assert not results[1].isfinite().all()  # else this test tests nothing
    x, plain = torch.zeros(1, 3, 32, 32, requires_grad=True), load_lpips(weights, "avg")
    for other in (Y[:1], torch.ones(1, 3, 32, 32)):
        assert torch.autograd.grad(plain(x, other).sum(), x)[0].isfinite().all()


def test_equal_images_have_distance_0_and_no_gradient(weights: Path) -> None:
    network = distances.lpips(load_lpips(weights, "avg"))
    x = X.clone().requires_grad_()
    found = network(x, X)
    assert found.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(found.sum(), x)[0].abs().max() == 0


def test_grey_images_are_taken_as_colour(weights: Path) -> None:
    network = load_lpips(weights, "avg")
    grey = X[:, :1], Y[:, :1]
    torch.testing.assert_close(network(*grey), network(*(v.repeat(1, 3, 1, 1) for v in grey)), rtol=0, atol=0)


def test_nothing_of_it_learns_or_drops_out(weights: Path) -> None:
    network = load_lpips(weights, "avg")
    assert not any(p.requires_grad for p in network.parameters())
    assert torch.equal(network(X, Y), network(X, Y))


def test_building_it_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Lpips("avg")
    assert torch.equal(torch.get_rng_state(), before)


class Danger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def test_other_files_are_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere\.pth; get VGG16's weights from https://"):
        load_lpips(tmp_path / "nowhere.pth", "avg")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"features.0.weight": Danger()}, tmp_path / "danger.pth")
    for name in ("text.pth", "danger.pth"):
        with pytest.raises(ConfigError, match="holds no plain tensors"):
            load_lpips(tmp_path / name, "avg")
    first = f"features.{CONVOLUTIONS[0][0]}.weight"
    for content in (torch.zeros(3), {first: 3}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(ConfigError, match=rf"odd.pth has no {first} of shape"):
            load_lpips(tmp_path / "odd.pth", "avg")
    assert "code was run" not in capsys.readouterr().out
    state: dict[str, Tensor] = torch.load(weights, weights_only=True)
    last = f"features.{CONVOLUTIONS[-1][0]}.weight"
    torch.save({k: v for k, v in state.items() if k != last}, tmp_path / "short.pth")
    with pytest.raises(ConfigError, match=rf"short.pth has no {last} of shape \[512, 512, 3, 3\]"):
        load_lpips(tmp_path / "short.pth", "avg")


def test_the_fingerprint_is_the_files(weights: Path, tmp_path: Path) -> None:
    import hashlib

    assert fingerprint(weights) == "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="there is no file"):
        fingerprint(tmp_path / "nowhere")


def test_bf16_is_within_a_hundredth_of_fp32_until_differences_are_below_its_digits(weights: Path) -> None:
    """Values, and the direction of the gradient, of like and unlike images; with random weights, so of the arithmetic
    alone. Below about 1e-3 bf16 adds up to 1e-5 of its own: two images that differ by less are not told apart.
    """
    full, half = load_lpips(weights, "avg"), load_lpips(weights, "avg", precision="bf16")
    smooth = torch.nn.functional.interpolate(torch.randn(2, 3, 8, 8, generator=GENERATOR), size=64, mode="bicubic")
    for noise, relative, absolute in ((1.0, 0.01, 0.0), (0.1, 0.01, 0.0), (0.001, 0.0, 2e-5)):
        x = smooth.clamp(-1, 1)
        y = (x + noise * torch.randn(x.shape, generator=GENERATOR)).clamp(-1, 1)
        values, gradients = [], []
        for network in (full, half):
            given = x.clone().requires_grad_()
            values.append(network(given, y))
            gradients.append(torch.autograd.grad(values[-1].sum(), given)[0].flatten())
        assert values[1].dtype == torch.float32
        torch.testing.assert_close(values[1], values[0], rtol=relative, atol=absolute)
        if relative:
            assert float(torch.nn.functional.cosine_similarity(*gradients, dim=0)) > 0.99
    assert half(smooth, smooth).tolist() == [0.0] * 2


def test_bf16_convolutions_have_their_channels_last(weights: Path) -> None:
    network, seen = load_lpips(weights, "avg", precision="bf16"), []
    for module in network.slices.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    network(X, Y)
    assert len(seen) == 2 * len(CONVOLUTIONS)
    assert all(x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_the_squared_difference_of_its_features_is_the_distance(weights: Path, pooling: Any) -> None:
    """So the curvature by their Jacobian is that of the distance: against its second derivative, by two gradients."""
    network, one, other = load_lpips(weights, pooling), X[:1, :, :16, :16], Y[:1, :, :16, :16]
    apart = sum(
        ((a - b) ** 2).flatten(1).sum(1) for a, b in zip(network.features(one), network.features(other), strict=True)
    )
    torch.testing.assert_close(apart, network(one, other), rtol=1e-4, atol=1e-7)
    distance = distances.lpips(network, network.features, size=16)
    v, y = torch.randn(one.shape, generator=torch.Generator().manual_seed(3)), one.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(one, y).sum(), y, create_graph=True)
    (expected,) = torch.autograd.grad((slope * v).sum(), y)
    found = distance.curvature(one, v)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert (found * v).flatten(1).sum(1).min() > 0
