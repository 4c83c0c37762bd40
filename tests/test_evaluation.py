import subprocess

import numpy as np
import pytest
import torch

from cmdist import distributed, evaluation
from cmdist.errors import DataError
from cmdist.evaluation import Statistics
from cmdist.generation import Task
from ranks import Ranks


def orthogonal(dimensions: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))[0]


def gaussian(mean: float, variances: np.ndarray, basis: np.ndarray) -> Statistics:
    return Statistics(1000, np.full(len(variances), mean), basis @ np.diag(variances) @ basis.T)


# --- the distance


@pytest.mark.parametrize("dimensions", [2, 8, 64])
def test_distance_of_gaussians_with_common_axes(dimensions):
    basis, draw = orthogonal(dimensions, 0), np.random.default_rng(1)
    a, b = draw.uniform(0.5, 2.0, (2, dimensions))
    expected = dimensions * 0.3**2 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = evaluation.frechet_distance(gaussian(0.0, a, basis), gaussian(0.3, b, basis))
    assert found == pytest.approx(expected, rel=1e-9)


def test_distance_of_two_dimensional_gaussians_with_other_axes():
    """For 2x2 matrices Tr sqrt(M) = sqrt(Tr M + 2 sqrt(det M))."""
    a, b = gaussian(0.0, np.array([1.0, 3.0]), orthogonal(2, 2)), gaussian(1.0, np.array([0.5, 2.0]), orthogonal(2, 3))
    product = a.covariance @ b.covariance
    trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 2 * 1.0 + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_distance_of_general_gaussians_is_that_of_the_symmetric_eigenvalue_form():
    a = gaussian(0.1, np.random.default_rng(4).uniform(0.01, 3.0, 64), orthogonal(64, 5))
    b = gaussian(0.0, np.random.default_rng(6).uniform(0.01, 3.0, 64), orthogonal(64, 7))
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root)).sum()
    expected = 64 * 0.01 + np.trace(a.covariance + b.covariance) - 2 * trace
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert evaluation.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_distance_of_features_is_cleanfids():
    draw = np.random.default_rng(8)
    a, b = draw.normal(size=(1400, 16)), draw.normal(size=(300, 16)) * 1.5 + 0.2
    found = evaluation.frechet_distance(evaluation.statistics(a), evaluation.statistics(b))
    assert found == pytest.approx(float(evaluation.fid.fid_from_feats(a, b)), rel=1e-12)
    assert evaluation.frechet_distance(evaluation.statistics(a), evaluation.statistics(a)) == pytest.approx(0.0, abs=1e-9)


def test_distance_with_a_feature_that_never_changes():
    """A dead feature makes the product of the covariances singular; the others must still count in full."""
    a, b = np.diag([1.0, 4.0, 0.0]), np.diag([4.0, 1.0, 0.0])
    found = evaluation.frechet_distance(Statistics(9, np.zeros(3), a), Statistics(9, np.zeros(3), b))
    assert found == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("n, refused", [(127, True), (128, False)])
def test_too_few_images_for_the_features_are_refused(n, refused):
    features = np.random.default_rng(9).normal(size=(n, 64))
    if refused:
        with pytest.raises(DataError, match="127 images are too few for a Frechet distance in 64 features: at least 128"):
            evaluation.statistics(features)
    else:
        assert evaluation.statistics(features).n == n


# --- statistics


def test_statistics_come_back_from_a_file_bit_for_bit_with_the_same_hash(tmp_path):
    made = evaluation.statistics(np.random.default_rng(10).normal(size=(50, 8)))
    made.save(str(tmp_path / "s.npz"))
    again = evaluation.load_statistics(str(tmp_path / "s.npz"))
    assert again.n == 50 and np.array_equal(again.mean, made.mean) and np.array_equal(again.covariance, made.covariance)
    assert again.hash == made.hash
    assert Statistics(51, made.mean, made.covariance).hash != made.hash != Statistics(50, made.mean + 1e-15, made.covariance).hash


@pytest.mark.parametrize("content", [b"", b"no npz", b"PK\x03\x04"])
def test_damaged_statistics_are_a_sentence(tmp_path, content):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match="does not hold feature statistics"):
        evaluation.load_statistics(str(tmp_path / "s.npz"))


def test_identity_depends_on_content_and_not_on_order():
    assert evaluation.identity({"a": 1, "b": [1, 2]}) == evaluation.identity({"b": [1, 2], "a": 1})
    assert evaluation.identity({"a": 1}) != evaluation.identity({"a": 2})


def test_code_version_names_version_and_commit():
    version, _, commit = evaluation.code_version().partition("+")
    assert version == evaluation.cmdist.__version__
    head = subprocess.run(["git", "-C", evaluation.__file__.rpartition("/")[0], "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert head.stdout.startswith(commit.removesuffix("-dirty")) and len(commit.removesuffix("-dirty")) >= 12


# --- references


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(11)
    flat = 128 + draw.normal(size=(500, 12)) @ draw.normal(size=(12, 16)) * 8
    return torch.from_numpy(flat.clip(0, 255).astype(np.uint8)).view(500, 1, 4, 4)


def test_bootstrap_draws_real_images_with_replacement(pictures):
    drawn = evaluation.bootstrap(pictures, 2000, seed=0)
    real = {image.numpy().tobytes() for image in pictures}
    found = [image.numpy().tobytes() for image in drawn]
    assert set(found) <= real and len(set(found)) < len(found)
    assert torch.equal(drawn, evaluation.bootstrap(pictures, 2000, seed=0)) and not torch.equal(
        drawn, evaluation.bootstrap(pictures, 2000, seed=1)
    )


def test_matched_gaussian_has_the_pixels_mean_and_covariance(pictures):
    n = 40_000
    drawn = evaluation.matched_gaussian(pictures, n, seed=0)
    assert drawn.shape == (n, 1, 4, 4) and drawn.dtype == torch.uint8
    real, made = pictures.flatten(1).double(), drawn.flatten(1).double()
    assert (real.mean(0) - made.mean(0)).abs().max() < 5 * real.std(0).max() / n**0.5
    scale = real.std(0).view(-1, 1) * real.std(0)
    # rounding adds 1/12 to each variance
    difference = (made.T.cov() - real.T.cov() - torch.eye(16) / 12).abs() / scale
    assert difference.max() < 5 * (2 / n) ** 0.5 + 0.01


# --- generation and features over ranks

TASK = Task(range(3, 1403), (1, 8, 8), 10, 2)


def sample(noises, labels):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(32, 1, 3, padding=1)).eval()
    return net(noises[0]) + net(noises[1]) + labels.view(-1, 1, 1, 1) / 10


def extract(images):
    torch.manual_seed(1)
    return torch.nn.Linear(64, 16)(images.flatten(1).float() / 255)


def test_measure_gives_features_in_order_of_seed():
    made = evaluation.measure(TASK, sample, extract, distributed.World(), keep=70)
    assert made.features.shape == (1400, 16) and made.features.dtype == np.float64 and made.images.shape == (70, 1, 8, 8)
    part = evaluation.measure(Task(range(100, 164), (1, 8, 8), 10, 2), sample, extract, distributed.World(), keep=70)
    assert np.array_equal(part.features, made.features[97:161]) and part.images.shape == (64, 1, 8, 8)
    assert torch.equal(
        evaluation.measure(Task(range(5, 9), (1, 8, 8), 10, 2), sample, extract, distributed.World(), keep=9).images, made.images[2:6]
    )
    assert part.sha256 != made.sha256


def _measure(folder: str, batch: int) -> None:
    world = distributed.start()
    made = evaluation.measure(TASK, sample, extract, world, batch=batch, keep=70)
    np.savez(f"{folder}/{world.size}-{world.rank}.npz", features=made.features, images=made.images.numpy(), sha256=made.sha256)
    distributed.stop(world)


def test_images_and_features_are_bit_identical_on_one_two_and_four_ranks(tmp_path):
    alone = evaluation.measure(TASK, sample, extract, distributed.World(), keep=70)
    running = [
        (size, Ranks(size, tmp_path / f"{size}.log", _measure, str(tmp_path), batch)) for size, batch in ((1, 1000), (2, 64), (4, 600))
    ]
    for size, ranks in running:
        assert ranks.join(120) == [0] * size, ranks.text
        with np.load(tmp_path / f"{size}-0.npz") as found:
            assert str(found["sha256"]) == alone.sha256
            assert np.array_equal(found["features"], alone.features) and np.array_equal(found["images"], alone.images.numpy())
