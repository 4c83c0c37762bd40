"""Derivatives along a path against central differences, closed forms, and what the pass with gradient sees."""

from collections.abc import Callable

import pytest
import torch
from closed_forms import as_network, randn
from torch import Tensor, nn

from cmdist.core.exact import Gaussian
from cmdist.core.noise import expand
from cmdist.core.objectives.base import same_dropout
from cmdist.core.preconditioning import Model, Scalings, angle, consistency_scalings, edm_scalings
from cmdist.core.tangents import denoised_along, denoised_along_next, raw_along
from cmdist.nets.unet import UNet

SCALINGS: dict[str, Callable[[Tensor], Scalings]] = {
    "edm": edm_scalings(),
    "trigflow": edm_scalings(0.5, angle(0.5)),
    "bounded": consistency_scalings(),
    "bounded, angle": consistency_scalings(0.5, 0.002, angle(0.5)),
}
SIGMA = torch.tensor([0.01, 0.3, 1.5, 40.0])


def unet(**changes: object) -> UNet:
    """The real network, small, with every layer's weights filled."""
    arguments: dict = {"image_size": 8, "in_channels": 3, "model_channels": 16, "channel_mult": (1, 2)}
    arguments |= {"num_res_blocks": 1, "attention_resolutions": (4,), "head_channels": 8, "time_factor": 1.0}
    torch.manual_seed(0)
    net = UNet(**(arguments | changes))
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net


def path(x: Tensor, sigma: Tensor, denoised: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The point of the straight path from x at sigma that lies `step` further in ln sigma."""
    moved = sigma * torch.tensor(step, dtype=sigma.dtype).exp()
    return x + expand((moved - sigma) / sigma, x) * (x - denoised), moved


def differences(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """Central differences in ln sigma, of fourth order."""
    h = 1e-3
    one, two = (
        (function(*path(x, sigma, denoised, k * h)) - function(*path(x, sigma, denoised, -k * h))) / (2 * k * h)
        for k in (1, 2)
    )
    return (4 * one - two) / 3


@pytest.mark.parametrize("name", SCALINGS)
def test_along_a_path_the_real_network_changes_as_central_differences_say(name: str) -> None:
    """In fp32, against differences in float64: 1e-5 of the whole at every noise level, where one of 40 in fp32 would
    lose all of the path's digits.
    """
    net, wide = unet(dropout=0.3), unet(dropout=0.3).double()
    x, image = SIGMA[:, None, None, None] * randn(4, 3, 8, 8, seed=2).float(), randn(4, 3, 8, 8, seed=1).float() / 2
    x = x + image
    found = (
        raw_along(Model(net, SCALINGS[name]), x, SIGMA, image, None, 7),
        denoised_along(Model(net, SCALINGS[name]), x, SIGMA, image, None, 7),
    )
    model = Model(wide, SCALINGS[name])

    def same(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def masked(x: Tensor, sigma: Tensor) -> Tensor:
            with same_dropout(7, x.device), torch.no_grad():
                return call(x, sigma)

        return masked

    for along, call in zip(found, (same(model.raw), same(model)), strict=True):
        torch.testing.assert_close(along.value.double(), call(x.double(), SIGMA.double()), rtol=1e-4, atol=1e-5)
        expected = differences(call, x.double(), SIGMA.double(), image.double())
        apart = (along.slope - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        assert apart.max() < 1e-5, apart


def test_in_bf16_a_slope_keeps_two_digits() -> None:
    x, image = randn(4, 3, 8, 8, seed=2).float(), randn(4, 3, 8, 8, seed=1).float() / 2
    full, half = (
        raw_along(Model(unet(precision=p), SCALINGS["trigflow"]), x, SIGMA, image, None, 0).slope
        for p in ("fp32", "bf16")
    )
    assert 0.001 < float((full - half).norm() / full.norm()) < 0.04


@pytest.mark.parametrize("name", SCALINGS)
def test_a_consistency_function_does_not_change_along_its_ode(name: str) -> None:
    data, sigma = Gaussian(0.3, 0.7), SIGMA.double()
    told = "angle" if name in ("trigflow", "bounded, angle") else "log"
    model = as_network(lambda x, sigma, labels: data.consistency(x, sigma, 0.002), SCALINGS[name], told=told)
    x = 0.3 + expand((0.7**2 + sigma**2).sqrt(), randn(4, 1, 2, 2)) * randn(4, 1, 2, 2, seed=3)
    along = denoised_along(model, x, sigma, data(x, sigma), None, 0)
    torch.testing.assert_close(along.value, data.consistency(x, sigma, 0.002), rtol=1e-9, atol=1e-9)
    assert along.slope.abs().max() < 1e-11
    other = denoised_along(model, x, sigma, data(x, sigma) + 0.1, None, 0)
    assert other.slope.abs().min() > 1e-4  # another path


def test_of_a_second_noise_level_only_the_chosen_one_moves() -> None:
    """value = x sigma sigma_next^2: its derivatives in ln sigma along the path, and in ln sigma_next, by hand."""
    sigma, sigma_next = SIGMA.double(), SIGMA.double() / 3
    x, image = randn(4, 1, 2, 2), randn(4, 1, 2, 2, seed=4)
    s, t = expand(sigma, x), expand(sigma_next, x)
    model = as_network(lambda x, s, labels, t: x * expand(s, x) * expand(t, x) ** 2, SCALINGS["edm"])
    along = denoised_along(model, x, sigma, image, None, 0, sigma_next)
    torch.testing.assert_close(along.slope, (x - image + x) * s * t**2)
    beside = denoised_along_next(model, x, sigma, None, 0, sigma_next)
    torch.testing.assert_close(beside.value, along.value)
    torch.testing.assert_close(beside.slope, 2 * x * s * t**2)


class Masked(nn.Module):
    """Lets its dropout be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def forward(self, u: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return self.dropout(self.scale * u)  # type: ignore[no-any-return]


def test_the_mask_is_that_of_the_pass_with_gradient_and_nothing_is_left_behind() -> None:
    net, x = Masked(), torch.ones(4, 1, 8, 8)
    model = Model(net, SCALINGS["edm"])
    state = torch.get_rng_state()
    along = raw_along(model, x, SIGMA, x / 2, None, 11)
    assert torch.equal(torch.get_rng_state(), state) and not along.value.requires_grad and not along.slope.requires_grad
    with same_dropout(11, x.device):
        found = model.raw(x, SIGMA)
    assert found.requires_grad
    torch.testing.assert_close(found, along.value, rtol=1e-6, atol=0)
    assert torch.equal(along.slope == 0, found == 0) and (found == 0).any()


def test_a_compiled_network_is_differentiated_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Masked(), torch.ones(4, 1, 8, 8)
    plain = raw_along(Model(net, SCALINGS["edm"]), x, SIGMA, x / 2, None, 11)

    def refuse(*inputs: Tensor) -> Tensor:
        raise AssertionError("torch.compile knows no forward mode")

    monkeypatch.setattr(net, "_compiled_call_impl", refuse)
    with pytest.raises(AssertionError, match="forward mode"):
        net(x, SIGMA, None)
    assert torch.equal(raw_along(Model(net, SCALINGS["edm"]), x, SIGMA, x / 2, None, 11).slope, plain.slope)


@pytest.mark.parametrize(
    ("changes", "most"), [({"channels_last": True}, 1e-5), ({"precision": "bf16"}, 0.06), ({"precision": "fp16"}, 0.01)]
)
def test_the_gradient_through_a_slope_hardly_depends_on_how_the_body_is_computed(
    changes: dict[str, object], most: float
) -> None:
    """What Theorem 3 and the Lagrangian loss need of the real network."""
    x, image = randn(4, 3, 8, 8, seed=2).float(), randn(4, 3, 8, 8, seed=1).float() / 2

    def gradient(**changes: object) -> Tensor:
        net = unet(dropout=0.3, **changes)
        along = denoised_along(Model(net, SCALINGS["trigflow"]), x, SIGMA, image, None, 3, gradient=True)
        whole = along.slope.square().mean() + along.value.square().mean()
        return torch.cat([each.flatten() for each in torch.autograd.grad(whole, list(net.parameters()))])

    plain = gradient()
    assert 0 < float((gradient(**changes) - plain).norm() / plain.norm()) < most
