"""Guidance of Gaussians and mixtures, whose guided ODE is known in closed form."""

import math

import pytest
import torch

from cmdist.core import guidance
from cmdist.core.exact import Gaussian, GaussianMixture
from cmdist.core.guidance import NULL, Guidance
from cmdist.core.noise import karras_sigmas
from cmdist.core.solvers import euler_step, heun_step, walk

OF_CLASS, OF_ALL = Gaussian(0.3, 0.3), Gaussian(-0.1, 0.6)
TOP, BOTTOM = 80.0, 0.002


def network(x, sigma, labels):
    """A conditional network: the class's Gaussian, or that of all where the label says none."""
    null = (labels == NULL).view(-1, 1, 1, 1)
    return torch.where(null, OF_ALL(x, sigma), OF_CLASS(x, sigma))


def spread(denoise, step=heun_step, n=2000):
    """The standard deviation that the ODE gives to samples of N(0, TOP^2): it is affine here."""
    x = torch.tensor([-TOP, TOP], dtype=torch.float64).view(2, 1, 1, 1)
    grid = karras_sigmas(n, BOTTOM, TOP, dtype=torch.float64)
    labels = torch.zeros(2, dtype=torch.int64)
    end = walk(lambda x, s, y, t: step(denoise, x, s, y, t), x, grid, labels)
    return float((end[1] - end[0]).item() / 2)


def shrinkage(std, high, low):
    """ln of how much a Gaussian of that spread shrinks from `high` to `low`."""
    return 0.5 * math.log((std**2 + high**2) / (std**2 + low**2))


def expected(w, low=BOTTOM, high=TOP):
    inside = w * shrinkage(OF_CLASS.std, high, low) + (1 - w) * shrinkage(OF_ALL.std, high, low)
    outside = shrinkage(OF_CLASS.std, TOP, high) + shrinkage(OF_CLASS.std, low, BOTTOM)
    return TOP * math.exp(-inside - outside)


@pytest.mark.parametrize("w", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["classifier-free", "auto"])
def test_the_spread_of_guided_samples_is_the_closed_form_s(w, kind):
    how = Guidance(w)
    guided = guidance.classifier_free(network, how) if kind == "classifier-free" else guidance.auto(
        OF_CLASS, OF_ALL, how)  # fmt: skip
    assert spread(guided) == pytest.approx(expected(w), rel=1e-3)


@pytest.mark.parametrize(("low", "high"), [(0.19, 1.61), (0.5, 5.0), (BOTTOM, 0.4), (2.0, TOP)])
def test_an_interval_guides_only_its_levels(low, high):
    guided = guidance.classifier_free(network, Guidance(2.0, low, high))
    assert spread(guided) == pytest.approx(expected(2.0, low, high), rel=1e-3)


def test_each_evaluation_of_a_step_goes_by_its_own_level():
    """One step of Heun from outside into the interval: only its second evaluation is guided."""
    how, x = Guidance(3.0, 0.1, 1.0), torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)
    start, end = (torch.tensor([s], dtype=torch.float64) for s in (2.0, 0.5))
    labels = torch.zeros(1, dtype=torch.int64)
    guided = guidance.classifier_free(network, how)
    got = heun_step(guided, x, start, labels, end)
    d = (x - OF_CLASS(x, start)) / 2.0
    ahead = x - 1.5 * d
    there = OF_ALL(ahead, end) + 3.0 * (OF_CLASS(ahead, end) - OF_ALL(ahead, end))
    assert torch.allclose(got, x - 1.5 * (d + (ahead - there) / 0.5) / 2)
    assert torch.equal(euler_step(guided, x, start, labels, end), euler_step(OF_CLASS, x, start, labels, end))


def test_scale_one_is_no_guidance_to_the_bit():
    for guided in (guidance.classifier_free(network, Guidance()), guidance.auto(network, OF_ALL, Guidance())):
        assert guided is network
    x, sigma = torch.randn(4, 1, 2, 2), torch.tensor([0.1, 0.5, 2.0, 80.0])
    labels = torch.zeros(4, dtype=torch.int64)
    outside = guidance.auto(network, OF_ALL, Guidance(2.0, 90.0, 100.0))
    assert torch.equal(outside(x, sigma, labels), network(x, sigma, labels))


def test_a_classifier_s_gradient_makes_the_conditional_denoiser():
    """D + sigma^2 grad log p(c | x) of a mixture is the class's denoiser, and w of it is classifier-free guidance."""
    means = torch.tensor([-0.5, 0.8], dtype=torch.float64).view(2, 1, 1, 1)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    mixture, of_class = GaussianMixture(means, 0.4, weights), Gaussian(0.8, 0.4)

    def likelihood(x, sigma, labels):
        variance = (0.4**2 + sigma**2)[:, None]
        logits = weights.log() - (x.flatten(1) - means.flatten(1).T).square() / (2 * variance)
        return logits.log_softmax(1)[torch.arange(len(x)), labels]

    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    sigma, labels = torch.linspace(0.1, 3, 9, dtype=torch.float64), torch.ones(9, dtype=torch.int64)
    unguided = guidance.classifier(mixture, likelihood, Guidance(1.0))
    assert torch.allclose(unguided(x, sigma, labels), of_class(x, sigma), atol=2e-6)
    twice = guidance.classifier(mixture, likelihood, Guidance(2.0))(x, sigma, labels)
    free = guidance.auto(of_class, mixture, Guidance(2.0))(x, sigma, labels)
    assert torch.allclose(twice, free, atol=4e-6)
    conditional = guidance.classifier(
        lambda x, sigma, labels: of_class(x, sigma), likelihood, Guidance(2.0), conditional=True
    )
    assert torch.allclose(conditional(x, sigma, labels), free, atol=4e-6)
