import pytest
import torch

from cmdist.core.exact import Gaussian
from cmdist.core.noise import karras_sigmas
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import generation
from cmdist.evaluation.generation import Task

CPU = torch.device("cpu")


def net() -> torch.nn.Module:
    """Convolutions and a matrix product: a network whose last bits depend on the shape of its batch."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(32, 1, 3, padding=1),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 64),
    ).eval()


def sample_with(network):
    def sample(noises, labels):
        images = network(noises[0]).view(-1, 1, 8, 8).tanh()
        return images if labels is None else images + (labels / 100).view(-1, 1, 1, 1)

    return sample


def images_of(task: Task, **how) -> dict[int, torch.Tensor]:
    size = generation.group_size(8, 8)
    found = {}
    for group, images in generation.generate(task, sample_with(net()), CPU, **how):
        assert images.shape == (size, 1, 8, 8) and images.dtype == torch.uint8
        part = task.part(group)
        for place, image in enumerate(images[part], start=group * size + part.start):
            found[place] = image
    return found


@pytest.fixture(scope="module")
def all_images():
    return images_of(Task(range(900), (1, 8, 8), 10, 1))


def same(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> bool:
    return all(torch.equal(a[seed], b[seed]) for seed in b)


@pytest.mark.parametrize("seeds", [range(1), range(5, 70), range(64, 128), range(63, 65), range(130, 300)])
def test_image_depends_on_its_seed_alone(all_images, seeds):
    found = images_of(Task(seeds, (1, 8, 8), 10, 1))
    assert sorted(found) == list(seeds) and same(all_images, found)


@pytest.mark.parametrize("batch", [1, 50, 256, 300, 600, 10_000])
def test_batch_changes_no_image(all_images, batch):
    found = images_of(Task(range(900), (1, 8, 8), 10, 1), batch=batch)
    assert sorted(found) == sorted(all_images) and same(all_images, found)


@pytest.mark.parametrize("world", [1, 2, 4, 7])
def test_groups_may_be_shared_out(all_images, world):
    task = Task(range(900), (1, 8, 8), 10, 1)
    parts = [images_of(task, groups=task.groups[rank::world]) for rank in range(world)]
    assert sorted(seed for part in parts for seed in part) == list(range(900))
    assert all(same(all_images, part) for part in parts)


def test_seeds_give_different_noise_and_a_seed_the_same_first_draw_for_any_number_of_draws():
    one, three = (generation.noises(range(20), draws, (3, 5, 5)) for draws in (1, 3))
    assert one.shape == (1, 20, 3, 5, 5) and three.shape == (3, 20, 3, 5, 5)
    assert torch.equal(one[0], three[0])
    assert len({tuple(noise.flatten().tolist()) for noise in three.flatten(0, 1)}) == 60
    assert torch.equal(generation.noises([7], 3, (3, 5, 5))[:, 0], three[:, 7])


def test_labels_go_round_with_the_seed():
    seen = []

    def sample(noises, labels):
        seen.append(labels)
        return noises[0]

    list(generation.generate(Task(range(100, 101), (1, 8, 8), 10, 1), sample, CPU))
    assert seen[0].tolist() == [seed % 10 for seed in range(256)]
    seen.clear()
    list(generation.generate(Task(range(100, 101), (1, 8, 8), 0, 1), sample, CPU))
    assert seen == [None]


@pytest.mark.parametrize("side, size", [(8, 256), (32, 256), (64, 64), (128, 16), (256, 4), (1024, 1)])
def test_group_size(side, size):
    assert generation.group_size(side, side) == size


def test_rounding_is_edms_and_gives_back_bytes():
    values = torch.tensor([-3.0, -1.0, -127.6 / 127.5, 0.0, 0.9999, 1.0, 3.0])
    assert generation.to_uint8(values).tolist() == [0, 0, 0, 128, 255, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(generation.to_uint8(levels.float() / 127.5 - 1), levels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match="not finite"):
        generation.to_uint8(torch.tensor([0.0, bad]))


# --- samplers


def gaussian(mean: float, std: float):
    """The denoiser of a Gaussian, and its consistency function down to sigma_min."""

    def denoise(x, sigma, labels=None):
        s = sigma.view(-1, 1, 1, 1)
        return (std**2 * x + s**2 * mean) / (std**2 + s**2)

    def consistency(x, sigma, labels=None, sigma_min=0.002):
        s = sigma.view(-1, 1, 1, 1)
        return mean + (x - mean) * torch.sqrt((std**2 + sigma_min**2) / (std**2 + s**2))

    return denoise, consistency


ARGUMENTS = {"ode_steps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


@pytest.mark.parametrize(
    "steps, times, denoising",
    [("1", (80.0, 0.8), False), ("2", (80.0, 0.8), False), ("3", (80.0, 5.0, 0.5), False), ("heun", (80.0, 0.8), True)],
)
def test_samplers_draw_from_the_gaussian_that_the_model_stands_for(steps, times, denoising):
    mean, std = 0.2, 0.1
    model = gaussian(mean, std)[0 if denoising else 1]
    (sampler,) = generation.samplers(
        model, [steps], times, makes="denoiser" if denoising else "consistency", **ARGUMENTS
    )
    noise = generation.noises(range(256), sampler.draws, (1, 8, 8))
    images = sampler.sample(noise, None)
    n = images.numel()
    assert abs(images.mean().item() - mean) < 5 * std / n**0.5
    assert abs(images.var().item() / std**2 - 1) < 5 * (2 / n) ** 0.5 + 5e-4
    assert sampler.name == {"1": "1step", "2": "2step", "3": "3step", "heun": "ode"}[steps]


def test_ode_ends_at_sigma_0_and_not_at_sigma_min():
    """With a denoiser that always says 1/4, only the last step from sigma_min to 0 takes the remaining noise away."""
    (sampler,) = generation.samplers(
        lambda x, sigma, labels: torch.full_like(x, 0.25), ["heun"], (80.0, 0.8), makes="denoiser", **ARGUMENTS
    )
    images = sampler.sample(generation.noises(range(8), 1, (1, 8, 8)), None)
    assert (images - 0.25).abs().max() < 1e-6


def test_samplers_have_the_names_that_metrics_know():
    denoise, consistency = gaussian(0.0, 0.5)
    made = generation.samplers(consistency, ["1", "2"], (80.0, 0.8), makes="consistency", **ARGUMENTS)
    assert [s.name for s in made] == ["1step", "2step"]
    assert [s.name for s in generation.samplers(denoise, ["heun"], (80.0, 0.8), makes="denoiser", **ARGUMENTS)] == [
        "ode"
    ]


@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.8), (80.0, 5.0, 0.5)])
def test_jumps_go_along_the_ode_without_new_noise(times: tuple[float, ...]):
    """A mean denoiser carries a Gaussian's noise to where its consistency function does, by any number of jumps."""
    data, ends = Gaussian(0.2, 0.1), (80.0, 0.8) if len(times) == 1 else times
    (sampler,) = generation.samplers(data, [str(len(times))], ends, makes="jump", **ARGUMENTS)
    noise = generation.noises(range(4), 1, (1, 8, 8))
    end = data.consistency(80 * noise[0], torch.full((4,), 80.0), 0.002)
    torch.testing.assert_close(sampler.sample(noise, None), end.clamp(-1, 1), rtol=0, atol=2e-6)
    assert (sampler.name, sampler.draws) == (f"{len(times)}step", 1)
    assert sampler.described == {"sampler": "jumps", "times": [*times, 0.002]}


def test_a_student_of_a_number_of_steps_makes_no_other():
    """Euler's steps along the grid of 5 levels, to sigma_min and not to the denoised image there."""
    data, arguments = Gaussian(0.2, 0.1), ARGUMENTS | {"makes": "steps", "n_steps": 4}
    (sampler,) = generation.samplers(data, ["4"], (80.0, 0.8), **arguments)
    noise = generation.noises(range(4), 1, (1, 8, 8)).double()
    x = 80 * noise[0]
    grid = karras_sigmas(5, dtype=torch.float64).tolist()
    for now, then in zip(grid, grid[1:], strict=False):
        x = 0.2 + (x - 0.2) * (1 + (then - now) / now * (1 - 0.01 / (0.01 + now**2)))
    torch.testing.assert_close(sampler.sample(noise, None), x.clamp(-1, 1), rtol=0, atol=1e-4)
    assert sampler.name == "4step" and sampler.described["sampler"] == "euler"
    with pytest.raises(ConfigError, match="--steps 2: this student was trained for 4 and makes no other number"):
        generation.samplers(data, ["2"], (80.0, 0.8), **arguments)
    with pytest.raises(ConfigError, match="heun is for denoising runs"):
        generation.samplers(data, ["heun"], (80.0, 0.8), **arguments)


def test_two_steps_use_the_second_draw():
    _, consistency = gaussian(0.0, 0.5)
    (sampler,) = generation.samplers(consistency, ["2"], (80.0, 0.8), makes="consistency", **ARGUMENTS)
    noise = generation.noises(range(4), 2, (1, 8, 8))
    other = noise.clone()
    other[1] += 1
    assert not torch.equal(sampler.sample(noise, None), sampler.sample(other, None))


@pytest.mark.parametrize(
    "steps, times, denoising, sentence",
    [
        (["3"], (80.0, 0.8), False, "needs 3 noise levels and there are 2"),
        (["heun"], (80.0, 0.8), False, "heun is for denoising runs"),
        (["1"], (80.0, 0.8), True, "a denoising run is sampled with heun"),
        (["0"], (80.0, 0.8), False, "a number of steps or 'heun'"),
        (["two"], (80.0, 0.8), False, "a number of steps or 'heun'"),
        (["2"], (40.0, 0.8), False, "must fall from sigma_max"),
        (["2"], (80.0, 0.002), False, "stay above sigma_min"),
        (["3"], (80.0, 0.8, 0.8), False, "must fall from sigma_max"),
    ],
)
def test_impossible_samplers_are_refused(steps, times, denoising, sentence):
    with pytest.raises(ConfigError, match=sentence):
        generation.samplers(
            gaussian(0.0, 0.5)[0], steps, times, makes="denoiser" if denoising else "consistency", **ARGUMENTS
        )


def test_a4_classes_without_images_are_not_drawn(all_images):
    task = Task(range(900), (1, 8, 8), 10, 1, present=(0, 3, 7))
    assert [task.label(seed) for seed in range(5)] == [0, 3, 7, 0, 3]
    found = images_of(task)
    assert {seed for seed in found if seed % 10 == task.label(seed)} == {
        seed for seed in found if torch.equal(found[seed], all_images[seed])
    }
