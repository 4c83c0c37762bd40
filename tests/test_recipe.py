"""Which network, batch and number of steps are chosen, and that every choice is a configuration."""

import dataclasses

import pytest

from cmdist import build, config, recipe
from cmdist.errors import ConfigError
from cmdist.plan import Plan, plan
from cmdist.recipe import LADDER, PER_PARAMETER, STUDENTS_PASSES, Images, Means, Teacher, choose, network

A100 = Means(gpus=8, memory=80, peaks=(156, 312), mfu=0.3, hours=24)
SMALL = Images("data/small", 50_000, 16, 3, 10)
DIGITS = Images("data/digits", 1797, 8, 1, 10)


@pytest.mark.parametrize("size", [8, 16, 24, 28, 32, 40, 48, 64, 96, 100, 128, 256, 512])
def test_every_rung_is_a_network_for_every_size(size: int) -> None:
    images = Images("data", 1000, size, 3, 0)
    for rung in LADDER:
        if size >= rung.smallest:
            keys = network(rung, images)
            tree = config.written(config.load("configs/emoji/edm.yaml"))
            tree["data"]["image_size"] = size
            net = build.on_meta(config.of_tree(tree | {"network": keys}, "test"))
            deepest = size // keys.get("unshuffle", 1) // 2 ** (len(keys["channel_mult"]) - 1)
            assert 4 <= deepest <= 32 and sum(p.numel() for p in net.parameters()) > 1000


@pytest.mark.parametrize("size", [33, 65, 100 + 1, 2 * 35])
def test_a_size_that_cannot_be_halved_enough_is_one_sentence(size: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"images of {size} pixels cannot be halved down .* with --size \d+ "
    ) as error:
        choose(Images("data", 100, size, 3, 0), A100, "mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("hours", "width"), [(0.001, 16), pytest.param(0.003, 16, marks=pytest.mark.slow), (0.1, 48)])
def test_the_widest_that_the_hours_pay_for_is_taken(monkeypatch: pytest.MonkeyPatch, hours: float, width: int) -> None:
    """And no other is planned whole: of what training costs the forward pass alone says enough."""
    planned = []

    def counted(made: config.Config, ranks: int) -> Plan:
        planned.append(made.network.model_channels)
        return plan(made, ranks)

    monkeypatch.setattr(recipe, "plan", counted)
    means = dataclasses.replace(A100, gpus=1, hours=hours)
    made = choose(SMALL, means, "mine")
    student = config.parse(made.text)
    teacher = config.parse(made.text, made.teacher)
    assert student.network.model_channels == width and set(planned) == {width}
    seen = min(c.train.steps * c.train.global_batch for c in (student, teacher))
    plans = [plan(c, 1) for c in (student, teacher)]
    costs = [each.gpu_hours(156, 0.3) for each in plans]
    assert plans[0].flops > STUDENTS_PASSES * plans[0].forward_flops
    assert bool(made.warnings) == (seen < 0.95 * PER_PARAMETER * plans[0].parameters)
    assert 0.8 * hours < sum(costs) <= hours and max(costs) < 0.47 * hours


@pytest.mark.parametrize(("gpus", "memory"), [pytest.param(1, 1.69, marks=pytest.mark.slow), (3, 1.7), (16, 80)])
def test_micro_batches_fit_the_memory_and_are_shared_evenly(gpus: int, memory: float) -> None:
    made = config.parse(choose(DIGITS, dataclasses.replace(A100, gpus=gpus, memory=memory), "mine").text)
    assert made.micro_batches % gpus == 0
    costs = plan(made, gpus)
    assert costs.total_memory <= recipe.OF_MEMORY * memory * 1e9
    twice = {"micro_batch": made.train.micro_batch * 2, "global_batch": made.train.global_batch * 2}
    larger = made.model_copy(update={"train": made.train.model_copy(update=twice)})
    grown = plan(larger, gpus).total_memory > recipe.OF_MEMORY * memory * 1e9
    assert grown or 2 * made.train.micro_batch * gpus > made.train.global_batch


def test_no_memory_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"--memory 0.5: not even one image at a time fits"):
        choose(DIGITS, dataclasses.replace(A100, memory=0.5), "mine")


def test_not_more_images_than_the_recipe_saw() -> None:
    made = choose(DIGITS, A100, "mine")
    student = config.parse(made.text)
    assert student.train.steps * student.train.global_batch <= 4_000_000
    assert "the hours pay for more images than configs/digits saw" in made.warnings[0]


def test_a_teacher_that_is_there_gives_its_network_and_all_hours_go_to_the_student() -> None:
    keys = {"kind": "ddpmpp", "model_channels": 16, "channel_mult": [2, 2], "num_blocks": 1, "dropout": 0.13}
    given = Teacher("teacher.safetensors", {"network": keys, "data": {"classes": 10}, "noise": {"sigma_data": 0.5}})
    made = choose(SMALL, dataclasses.replace(A100, hours=0.001), "mine", given)
    student = config.parse(made.text)
    assert made.teacher == () and student.teacher == "teacher.safetensors" and student.init == "teacher"
    assert student.network.kind == "ddpmpp" and student.dropout == 0.0
    assert 0.8 * 0.001 * 8 < plan(student, 8).gpu_hours(156, 0.3) <= 0.001 * 8
    other = Teacher("teacher.safetensors", {"network": keys, "data": {"classes": 0}})
    with pytest.raises(ConfigError, match=r"--teacher teacher.safetensors has data.classes 0, data/small has 10"):
        choose(SMALL, A100, "mine", other)
