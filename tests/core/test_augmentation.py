"""EDM's augmentation against flips, turns and shifts of pixels, and against smooth pictures known everywhere."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmdist.core import augmentation
from cmdist.core.augmentation import LOG2_SCALE, SHIFT, changed, told
from cmdist.core.objectives.base import Networks
from cmdist.core.objectives.denoising import Denoising

MIRRORED, UPSIDE, SCALE, TURN, AXIS, STRETCH, RIGHT, DOWN = range(8)
SIZE = 32


def change(**numbers: float) -> Tensor:
    values = torch.zeros(1, 8)
    for name, value in numbers.items():
        values[0, globals()[name.upper()]] = value
    return values


def noise(channels: int = 3, n: int = 1) -> Tensor:
    return torch.randn(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def places() -> tuple[Tensor, Tensor]:
    """Of the pixels' centres, x to the right and y down, in half sides."""
    one = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    return one[None, :].expand(SIZE, SIZE), one[:, None].expand(SIZE, SIZE)


def smooth(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-4 * ((x - 0.15) ** 2 + 2 * (y + 0.1) ** 2)) + 0.1 * torch.sin(3 * x + 1)


def picture(where: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The smooth picture, each pixel from the place that `where` gives."""
    return smooth(*where(*places()))[None, None]


def test_no_change_changes_no_bit() -> None:
    assert torch.equal(changed(noise(), change()), noise()) and not told(change()).any()


def test_mirrors_move_pixels() -> None:
    assert torch.equal(changed(noise(), change(mirrored=1)), noise().flip(3))
    assert torch.equal(changed(noise(), change(upside=1)), noise().flip(2))
    assert told(change(mirrored=1, upside=1)).tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_quarter_turns_move_pixels_counterclockwise(quarters: int) -> None:
    turned = changed(noise(), change(turn=quarters * math.pi / 2))
    torch.testing.assert_close(turned, noise().rot90(quarters, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(5, 0), (0, -3), (-7, 2)])
def test_whole_pixels_are_shifted_and_borders_mirrored(right: int, down: int) -> None:
    moved = changed(noise(), change(right=right / SIZE / SHIFT, down=down / SIZE / SHIFT))
    pad = 8
    mirrored = torch.cat([noise().flip(3)[..., -pad:], noise(), noise().flip(3)[..., :pad]], 3)
    mirrored = torch.cat([mirrored.flip(2)[:, :, -pad:], mirrored, mirrored.flip(2)[:, :, :pad]], 2)
    truth = mirrored[:, :, pad - down : pad - down + SIZE, pad - right : pad - right + SIZE]
    torch.testing.assert_close(moved, truth, atol=1e-4, rtol=0)


def scaled(by: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda x, y: (x / 2 ** (LOG2_SCALE * by), y / 2 ** (LOG2_SCALE * by))


def turned(by: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda x, y: (x * math.cos(by) - y * math.sin(by), x * math.sin(by) + y * math.cos(by))


def stretched(axis: float, by: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def where(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        along, across = x * math.cos(axis) + y * math.sin(axis), -x * math.sin(axis) + y * math.cos(axis)
        along, across = along / 2 ** (LOG2_SCALE * by), across * 2 ** (LOG2_SCALE * by)
        return along * math.cos(axis) - across * math.sin(axis), along * math.sin(axis) + across * math.cos(axis)

    return where


def shifted(right: float, down: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda x, y: (x - 2 * SHIFT * right, y - 2 * SHIFT * down)


@pytest.mark.parametrize(
    ("numbers", "where"),
    [
        ({"scale": 1.3}, scaled(1.3)),
        ({"turn": 0.7}, turned(0.7)),
        ({"axis": 0.4, "stretch": 1.5}, stretched(0.4, 1.5)),
        ({"axis": 0.4, "stretch": -1.5}, stretched(0.4, -1.5)),
        ({"right": 0.33, "down": -0.21}, shifted(0.33, -0.21)),
    ],
)
def test_a_smooth_picture_is_what_it_is_at_the_places_where_pixels_come_from(
    numbers: dict[str, float], where: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    got, truth = changed(picture(lambda x, y: (x, y)), change(**numbers)), picture(where)
    x, y = where(*places())
    inside = (x.abs() < 0.85) & (y.abs() < 0.85)
    assert inside.double().mean() > 0.5
    difference = ((got - truth)[0, 0].abs() * inside).max()
    assert difference < 3e-3 < 0.05 < (picture(lambda x, y: (x, y)) - truth).abs().max()


def test_changes_follow_each_other_in_their_order() -> None:
    """Mirrored first, shifted last: the place of a pixel goes through them backwards."""
    numbers = {"mirrored": 1.0, "scale": 0.9, "turn": 0.5, "axis": 1.1, "stretch": 0.8, "right": 0.4, "down": 0.2}

    def where(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for each in (shifted(0.4, 0.2), stretched(1.1, 0.8), turned(0.5), scaled(0.9)):
            x, y = each(x, y)
        return -x, y

    got, truth = changed(picture(lambda x, y: (x, y)), change(**numbers)), picture(where)
    x, y = where(*places())
    assert ((got - truth)[0, 0].abs() * ((x.abs() < 0.85) & (y.abs() < 0.85))).max() < 3e-3


def test_what_is_told_follows_from_what_is_done() -> None:
    numbers = {"scale": 0.5, "turn": 0.7, "axis": -0.4, "stretch": 2.0, "right": 0.3, "down": -0.1}
    values = [0, 0, 0.5, math.cos(0.7) - 1, math.sin(0.7), 2 * math.cos(0.4), -2 * math.sin(0.4), 0.3, -0.1]
    torch.testing.assert_close(told(change(**numbers)), torch.tensor([values]))


def test_each_change_happens_as_often_as_it_should() -> None:
    n, p = 40_000, 0.12
    changes = augmentation.draw(n, p, torch.Generator().manual_seed(0))
    happened = (changes != 0).double().mean(0)
    for share, truth in zip(happened.tolist(), [0.5, p / 2, p, p, p, p, p, p], strict=True):
        assert abs(share - truth) < 4 * math.sqrt(truth * (1 - truth) / n)
    together = (changes[:, [AXIS, RIGHT]] != 0) == (changes[:, [STRETCH, DOWN]] != 0)
    assert together.all()
    pairs = (changes[:, SCALE] != 0) & (changes[:, TURN] != 0)
    assert abs(pairs.double().mean() - p**2) < 4 * p / math.sqrt(n)  # independent of each other
    for column in (SCALE, STRETCH, RIGHT, DOWN):
        values = changes[:, column][changes[:, column] != 0]
        assert abs(values.mean()) < 0.06 and abs(values.std() - 1) < 0.06
    for column in (TURN, AXIS):
        values = changes[:, column][changes[:, column] != 0]
        assert values.abs().max() <= math.pi and abs(values.std() - math.pi / math.sqrt(3)) < 0.05


def test_the_loss_is_that_of_the_changed_images_and_the_network_is_told_how() -> None:
    seen: dict[str, Tensor] = {}

    def student(x: Tensor, sigma: Tensor, labels: Tensor | None, **more: Tensor) -> Tensor:
        seen.update(more, x=x)
        return torch.zeros_like(x)

    networks = Networks(student, student)  # type: ignore[arg-type]
    images, objective = noise(n=16), Denoising(augment=0.5)
    draw = objective.draw(images.shape, {}, torch.Generator().manual_seed(1))
    losses = objective.loss(networks, images, None, draw)
    result = changed(images, draw.changes)  # type: ignore[attr-defined]
    assert torch.equal(seen["augment_labels"], told(draw.changes)) and (result != images).any()  # type: ignore[attr-defined]
    torch.testing.assert_close(seen["x"], result + draw.sigma[:, None, None, None] * draw.noise)
    weight = draw.sigma**-2 + 0.5**-2
    torch.testing.assert_close(losses.minimised, weight * result.square().flatten(1).mean(1))


def test_without_it_nothing_is_drawn_and_nothing_told() -> None:
    told_of: list[dict[str, Tensor]] = []

    def student(x: Tensor, sigma: Tensor, labels: Tensor | None, **more: Tensor) -> Tensor:
        told_of.append(more)
        return x

    plain, more = Denoising(), Denoising(augment=0.3)
    draws = [each.draw((4, 3, SIZE, SIZE), {}, torch.Generator().manual_seed(2)) for each in (plain, more)]
    assert torch.equal(draws[0].sigma, draws[1].sigma) and torch.equal(draws[0].noise, draws[1].noise)
    plain.loss(Networks(student, student), noise(n=4), None, draws[0])  # type: ignore[arg-type]
    assert told_of == [{}]
