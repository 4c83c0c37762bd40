"""Editing keeps what is known exactly; its closed forms equal the paper's orthogonal matrices."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cmdist.core import editing
from cmdist.core.editing import Known
from cmdist.core.exact import Gaussian
from cmdist.core.sampling import multistep

DOUBLE = torch.float64
DATA = Gaussian(0.2, 0.4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def exact(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    return DATA.consistency(x, sigma, 0.002)


def kinds(y: Tensor) -> dict[str, Known]:
    mask = torch.zeros(1, 1, *y.shape[2:], dtype=y.dtype)
    mask[..., 2:6, 3:7] = 1
    return {
        "inpainting": editing.inpainting(y, mask),
        "colourisation": editing.colourisation(y),
        "super-resolution": editing.super_resolution(y, 4),
    }


@pytest.mark.parametrize("kind", kinds(torch.zeros(1, 3, 8, 8)))
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_projections_are_idempotent_and_keep_the_known_part(kind: str, dtype: torch.dtype) -> None:
    y, x = randn(2, 3, 8, 8).to(dtype), randn(2, 3, 8, 8, seed=1).to(dtype)
    known = kinds(y)[kind]
    once = known.project(x)
    torch.testing.assert_close(known.project(once), once)
    assert known.error(once).max() < 1e-5 and known.error(x).min() > 0.1
    torch.testing.assert_close(known.project(y), y)
    # orthogonal: what changes is the known part alone, so nothing is nearer to x among pictures with y's
    other = known.project(randn(2, 3, 8, 8, seed=2).to(dtype))
    assert ((once - x) * (other - once)).sum().abs() < 1e-3


@pytest.mark.parametrize("kind", kinds(torch.zeros(1, 3, 8, 8)))
def test_the_known_part_is_kept_through_all_steps(kind: str) -> None:
    y = 0.5 * randn(2, 3, 8, 8)
    known, times = kinds(y)[kind], torch.tensor([80.0, 20.0, 3.0, 0.5], dtype=DOUBLE)
    images, error = editing.complete(exact, known, randn(4, 2, 3, 8, 8, seed=1), times)
    assert error.max() < 1e-12 and images.abs().max() <= 1 and not torch.allclose(images, y, atol=0.1)


def test_colours_outside_the_range_are_clamped_at_the_end_only() -> None:
    """Grey 1 projects to (.67, 1.31, .26): a clamp between the steps would lose the luma."""
    y = torch.ones(1, 3, 4, 4, dtype=DOUBLE)
    projected = editing.colourisation(y).project(torch.zeros_like(y))[0, :, 0, 0]
    torch.testing.assert_close(projected, torch.tensor([0.67, 1.31, 0.26], dtype=DOUBLE), atol=0.01, rtol=0)
    times = torch.tensor([80.0, 5.0], dtype=DOUBLE)
    images, error = editing.complete(exact, editing.colourisation(y), randn(2, 1, 3, 4, 4), times)
    assert error.max() < 1e-12 and images.max() == 1


def test_one_step_with_nothing_known_is_sampling() -> None:
    noises, y = randn(3, 2, 3, 8, 8), randn(2, 3, 8, 8, seed=3)
    for steps in (1, 3):
        times = torch.tensor([80.0, 3.0, 0.5], dtype=DOUBLE)[:steps]
        known = editing.inpainting(y, torch.ones(1, 1, 8, 8, dtype=DOUBLE))
        images = editing.complete(exact, known, noises[:steps], times).images
        assert torch.equal(images, multistep(exact, noises[:steps], times, clip=False).clamp(-1, 1))


def test_colourisation_equals_the_papers_orthogonal_matrix() -> None:
    first = np.array([*editing.LUMA])
    q = np.linalg.qr(np.stack([first, [0, 1, 0], [0, 0, 1]], axis=1))[0]
    q = q * np.sign(q[0, 0])  # numpy's first column may be -u
    y, x = randn(1, 3, 2, 2), randn(1, 3, 2, 2, seed=1)
    coefficients, ours = (np.einsum("ck,bchw->bkhw", q, v.numpy()) for v in (y, x))
    ours[:, 0] = coefficients[:, 0]
    wanted = np.einsum("ck,bkhw->bchw", q, ours)
    np.testing.assert_allclose(editing.colourisation(y).project(x), wanted, atol=1e-14)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_super_resolution_equals_the_papers_orthogonal_matrix(patch: int) -> None:
    n = patch * patch
    q = np.linalg.qr(np.concatenate([np.full((n, 1), 1 / patch), np.eye(n)[:, 1:]], axis=1))[0]
    q = q * np.sign(q[0, 0])
    y, x = randn(1, 2, 8, 8), randn(1, 2, 8, 8, seed=1)

    def coefficients(v: Tensor) -> np.ndarray:
        patches = v.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)  # (B, C, h, w, n)
        return patches.numpy() @ q

    ours = coefficients(x)
    ours[..., 0] = coefficients(y)[..., 0]
    patches = torch.from_numpy(ours @ q.T).unflatten(4, (patch, patch))
    wanted = patches.permute(0, 1, 2, 4, 3, 5).reshape(y.shape)
    projected = editing.super_resolution(y, patch)
    torch.testing.assert_close(projected.project(x), wanted, atol=1e-13, rtol=0)
    difference = np.abs(coefficients(x) - coefficients(y))[..., 0].max()
    torch.testing.assert_close(projected.error(x), torch.tensor([difference], dtype=DOUBLE))


def test_a_stroke_is_where_sampling_starts() -> None:
    y, noises = 0.3 * randn(2, 3, 4, 4), randn(2, 2, 3, 4, 4, seed=1)
    times = torch.tensor([5.38, 2.24], dtype=DOUBLE)
    sigma = times[:1].expand(2)
    first = exact(y + 5.38 * noises[0], sigma).clamp(-1, 1)
    level = (2.24**2 - 0.002**2) ** 0.5
    wanted = exact(first + level * noises[1], times[1:].expand(2)).clamp(-1, 1)
    torch.testing.assert_close(editing.stroke_guided(exact, y, noises, times), wanted)


def test_denoising_takes_the_noisy_picture_as_it_is() -> None:
    x = randn(2, 3, 4, 4)
    torch.testing.assert_close(
        editing.denoised(exact, x, 0.7), exact(x, torch.full((2,), 0.7, dtype=DOUBLE)).clamp(-1, 1)
    )


def spheres() -> list[Callable[[int], Tensor]]:
    return [lambda seed: randn(3, 16, 16, seed=seed), lambda seed: randn(3, 16, 16, seed=seed).float()]


@pytest.mark.parametrize("draw", spheres())
def test_slerp_keeps_norms_and_ends(draw: Callable[[int], Tensor]) -> None:
    a, b = draw(0), draw(1)
    b = b * a.norm() / b.norm()
    weights = torch.linspace(0, 1, 5)
    between = editing.slerp(a, b, weights)
    torch.testing.assert_close(between[0], a)
    torch.testing.assert_close(between[-1], b)
    torch.testing.assert_close(between.flatten(1).norm(dim=1), a.norm().expand(5))
    torch.testing.assert_close(editing.slerp(a, a, weights), a.expand(5, -1, -1, -1))
