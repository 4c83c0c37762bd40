"""A scale of guidance that is drawn for each image: the teacher is guided by it, and the student is told."""

import math

import pytest
import torch
from torch import Tensor

from cmdist import build, config, seeding
from cmdist.config import Config
from cmdist.core.guidance import Drawn, Guidance, classifier_free
from cmdist.core.objectives.base import Networks
from cmdist.nets.weighting import Weighting
from cmdist.train.trainer import guided

KINDS = ("consistency_distillation", "scm_distillation", "continuous_distillation", "consistency_mid_training")
TEXT = """
run: {name: told}
data: {url: none, image_size: 8, channels: 1, classes: 10}
network: {kind: adm, model_channels: 8, channel_mult: [1], num_res_blocks: 1, head_channels: 8, norm_groups: by_width,
  time_factor: 1.0}
optimizer: {lr: 1.0e-3}
train: {steps: 4, global_batch: 6, micro_batch: 6, precision: fp32, ema: [0.9]}
"""
TOLD = ["objective.guidance_range=[1.0, 4.0]", "network.told_guidance=true"]


def made(kind: str, *more: str) -> Config:
    return config.parse(f"objective: {{kind: {kind}, teacher: runs/t}}\n{TEXT}", more)


def teacher(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """A denoiser whose classes pull in directions of their own; of no class in none."""
    assert labels is not None
    pull = torch.where(labels < 0, 0.0, labels.double() / 10 - 0.4).to(x.dtype)
    return (0.25 * x + pull[:, None, None, None]) / (0.25 + sigma[:, None, None, None] ** 2)


def networks(c: Config, follows: object) -> Networks:
    torch.manual_seed(0)
    net = build.network(c)
    for name, parameter in net.named_parameters():
        if not parameter.any() and not name.startswith("guidance_embed"):
            torch.nn.init.normal_(parameter, std=0.1)
    model = build.model(c, net)
    extra = Weighting() if c.kind.extra else None
    return Networks(model, model, teacher=follows, extra=extra)  # type: ignore[arg-type]


def losses(c: Config, n: Networks) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 8, 8, generator=generator) * 2 - 1
    objective = build.objective(c, lambda keys: build.distance(c, keys))
    draw = objective.draw(images.shape, objective.at(2), generator)
    return objective.loss(n, images, torch.tensor([0, 1, 2, 3, 8, 9]), draw).minimised


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_makes_nothing_of_it_has_the_losses_of_fixed_scales(kind: str) -> None:
    """Each image's is that of a teacher guided by its own scale: drawn 1.5 and 3 in turn, against both fixed."""
    c = made(kind, *TOLD)
    scales = torch.tensor([1.5, 3.0] * 3)
    drawn = losses(c, guided(networks(c, teacher), lambda how: classifier_free(teacher, how), Drawn(scales=scales)))
    fixed = [losses(c, networks(c, classifier_free(teacher, Guidance(w)))) for w in (1.5, 3.0)]
    assert torch.equal(drawn, torch.where(scales == 3, fixed[1], fixed[0]))
    assert (fixed[0] != fixed[1]).all() or kind.startswith("scm")  # sCM's value is what it is by construction


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_learns_from_being_told(kind: str) -> None:
    c = made(kind, *TOLD)
    drawn = c.guidance.drawn(6, torch.Generator().manual_seed(3))
    n = guided(networks(c, teacher), lambda how: classifier_free(teacher, how), drawn)
    losses(c, n).mean().backward()
    last = n.student.net.net.guidance_embed[2]  # type: ignore[attr-defined]
    assert last.weight.grad.any() and last.bias.grad.any()


def test_scales_are_log_uniform_and_a_function_of_seed_and_number() -> None:
    how = made(KINDS[0], *TOLD).guidance

    def scales(seed: int, number: int, n: int = 6) -> Tensor:
        return how.drawn(n, seeding.generator("cpu", seed, "guidance", number)).scales

    assert torch.equal(scales(0, 1), scales(0, 1))
    assert not torch.equal(scales(0, 1), scales(0, 2)) and not torch.equal(scales(0, 1), scales(1, 1))
    many = scales(0, 0, 20_000).double()
    assert 1 <= many.min() < 1.001 and 3.99 < many.max() <= 4
    logs = many.log() / math.log(4)
    assert abs(logs.mean() - 0.5) < 0.01 and abs(logs.std() - 1 / math.sqrt(12)) < 0.01


def test_the_interval_holds_for_drawn_scales_too() -> None:
    drawn = Drawn(low=0.2, high=2.0, scales=torch.tensor([1.5, 3.0]))
    assert drawn.at(torch.tensor([0.2, 2.0, 2.1, 0.5])).tolist() == [1.0, 3.0, 1.0, 3.0]


@pytest.mark.parametrize("kind", ["adm", "ddpmpp"])
def test_a_network_that_is_told_nothing_is_as_with_scale_one_and_its_layout_has_three_more(kind: str) -> None:
    keys = [] if kind == "adm" else ["network={kind: ddpmpp, model_channels: 8, channel_mult: [1], num_blocks: 1}"]
    plain, told = made(KINDS[0], *keys), made(KINDS[0], *keys, *TOLD)
    torch.manual_seed(0)
    net = build.network(told)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x, c_noise, labels = torch.randn(3, 1, 8, 8), torch.zeros(3), torch.tensor([1, 2, 3])
    none, one, two = (
        net(x, c_noise, labels, **more) for more in ({}, *({"guidance": torch.full((3,), w)} for w in (1.0, 2.0)))
    )
    assert torch.equal(none, one) and not torch.equal(one, two)
    more = set(net.state_dict()) - set(build.network(plain).state_dict())
    assert more == {f"guidance_embed.{layer}.{what}" for layer in (0, 2) for what in ("weight", "bias")}
    fitted = build.fitting(told, net, plain, build.network(plain).state_dict())
    assert set(fitted) == set(net.state_dict())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective.guidance_range=[1, 4]"], "it needs network.told_guidance true"),
        (["network.told_guidance=true"], "it needs objective.guidance_range"),
        ([*TOLD, "objective.guidance=2.0"], "and objective.guidance, a fixed scale, 1"),
        ([*TOLD, "objective.guidance_range=[2.0, 4.0]"], r"must be \[low, high\] around 1"),
        ([*TOLD, "objective.guidance_range=[1.0, 1.0]"], r"must be \[low, high\] around 1"),
        ([*TOLD, "objective.guidance_range=[0.0, 4.0]"], "input should be greater than 0"),
        ([*TOLD, "data.classes=0"], "guides towards classes: it needs data.classes above 0"),
        (["objective.guide=runs/bad"], "what objective.guidance guides away from: a scale other than 1 is needed"),
    ],
)
def test_what_cannot_be_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(config.ConfigError, match=sentence) as error:
        made(KINDS[0], *overrides)
    assert "\n" not in str(error.value)
