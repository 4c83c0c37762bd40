"""The figures against closed forms, clean-fid and torch-fidelity, all on the same features."""

import numpy as np
import pytest
import torch

from cmdist.errors import DataError
from cmdist.evaluation.metrics import frechet, inception_score, kernel, neighbours
from cmdist.evaluation.metrics.frechet import Moments, Statistics
from cmdist.nets import torchvision_ops

torchvision_ops.declare_missing()
from cleanfid import fid as clean_fid
from torch_fidelity import metric_isc, metric_kid, metric_prc


def features(n: int, dimensions: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """As of a network: correlated, with some dimensions that hardly vary."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99)) * torch.linspace(
        1.0, 0.01, dimensions
    )
    return torch.randn(n, dimensions, generator=draw) @ mix * scale + shift


def statistics(x: torch.Tensor, *cuts: int) -> Statistics:
    moments = Moments(x.shape[1])
    for piece in x.tensor_split(cuts):
        moments.add(piece)
    return moments.statistics()


def orthogonal(dimensions: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(
        torch.randn(dimensions, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )[0]


def gaussian(mean: float, variances: torch.Tensor, basis: torch.Tensor) -> Statistics:
    variances = variances.double()
    return Statistics(
        1000, torch.full((len(variances),), mean, dtype=torch.float64), basis @ variances.diag() @ basis.T
    )


# --- moments


def test_moments_are_numpys_however_the_features_are_cut():
    x = features(500, 20, 0, shift=1e3)  # a mean far from 0, where sums of squares would lose the digits
    made = statistics(x, 1, 2, 130, 130, 499)
    assert made.n == 500
    assert np.allclose(made.mean, x.double().mean(0), rtol=1e-14)
    assert np.allclose(made.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_merged_moments_are_those_of_all():
    x = features(300, 8, 1)
    parts = [Moments(8) for _ in range(4)]  # one of them stays empty
    for part, piece in zip(parts, x.split(100), strict=False):
        part.add(piece)
    whole = Moments(8)
    for part in parts:
        whole.merge(part)
    assert np.allclose(whole.statistics().covariance, statistics(x).covariance, rtol=1e-12)
    again = Moments.of(whole.n, whole.mean, whole.scatter)
    again.add(x)
    assert again.n == 600 and whole.n == 300, "a copy"


@pytest.mark.parametrize("n, refused", [(127, True), (128, False)])
def test_too_few_images_for_the_features_are_refused(n: int, refused: bool):
    if refused:
        with pytest.raises(
            DataError,
            match="127 images are too few for a Frechet distance in 64 features: at least 128 .*5000 are usual",
        ):
            frechet.frechet_distance(statistics(features(128, 64, 3)), statistics(features(n, 64, 2)))
    else:
        assert frechet.frechet_distance(statistics(features(n, 64, 2)), statistics(features(n, 64, 3))) > 0
    with pytest.raises(DataError, match="at least 4096 are needed, 50000 are usual"):
        frechet.check_count(4000, 2048)


# --- Frechet distance


@pytest.mark.parametrize("dimensions", [2, 8, 64])
def test_distance_of_gaussians_with_common_axes(dimensions: int):
    basis = orthogonal(dimensions, 0)
    a, b = torch.rand(2, dimensions, generator=torch.Generator().manual_seed(1)).double() * 1.5 + 0.5
    expected = dimensions * 0.3**2 + ((a.sqrt() - b.sqrt()) ** 2).sum()
    assert frechet.frechet_distance(gaussian(0.0, a, basis), gaussian(0.3, b, basis)) == pytest.approx(
        float(expected), rel=1e-10
    )


def test_distance_of_two_dimensional_gaussians_with_other_axes():
    """For 2x2 matrices Tr sqrt(M) = sqrt(Tr M + 2 sqrt(det M))."""
    a, b = (
        gaussian(0.0, torch.tensor([1.0, 3.0]), orthogonal(2, 2)),
        gaussian(1.0, torch.tensor([0.5, 2.0]), orthogonal(2, 3)),
    )
    product = a.covariance @ b.covariance
    trace = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = 2 * 1.0 + a.covariance.trace() + b.covariance.trace() - 2 * trace
    assert frechet.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_singular_covariances_lose_no_digits():
    """Rank 3 and rank 5 in 40 dimensions; with common axes the closed form holds all the same."""
    basis = orthogonal(40, 4)
    a, b = torch.zeros(2, 40, dtype=torch.float64)
    a[:3], b[:5] = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 1.0, 4.0, 2.0, 3.0])
    expected = 1.0 + 0.0 + 1.0 + 2.0 + 3.0
    assert frechet.frechet_distance(gaussian(0.0, a, basis), gaussian(0.0, b, basis)) == pytest.approx(
        expected, rel=1e-7
    )
    assert frechet.frechet_distance(gaussian(0.0, a, basis), gaussian(0.0, a, basis)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dimensions", [16, 64, 300])
def test_distance_is_cleanfids(dimensions: int):
    a, b = features(1400, dimensions, 8), features(700, dimensions, 9, 1.2, 0.1)
    found = frechet.frechet_distance(statistics(a), statistics(b))
    assert found == pytest.approx(float(clean_fid.fid_from_feats(a.double().numpy(), b.double().numpy())), rel=1e-6)
    assert frechet.frechet_distance(statistics(b), statistics(a)) == pytest.approx(found, rel=1e-9)
    assert frechet.frechet_distance(statistics(a), statistics(a)) == pytest.approx(0.0, abs=1e-9 * dimensions)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_distance_is_cleanfids_in_inceptions_dimensions():
    """2048 dimensions, 5,000 and 6,000 images; clean-fid's root of a general matrix takes most of the minute."""
    a, b = features(5000, 2048, 10), features(6000, 2048, 11, 1.1, 0.02)
    found = frechet.frechet_distance(statistics(a), statistics(b))
    assert found == pytest.approx(float(clean_fid.fid_from_feats(a.double().numpy(), b.double().numpy())), rel=1e-6)


def test_features_of_other_dimensions_are_refused():
    with pytest.raises(DataError, match="features of 4 and of 8 dimensions"):
        frechet.frechet_distance(statistics(features(20, 4, 0)), statistics(features(20, 8, 0)))


# --- kernel distance


def test_kernel_distance_is_torch_fidelitys_and_cleanfids_when_a_subset_is_everything():
    a, b = features(400, 64, 12), features(400, 64, 13, 1.1, 0.05)
    found = kernel.kernel_distance(a, b, subsets=2, size=400)
    theirs = metric_kid.kid_features_to_metric(
        a.double(), b.double(), kid_subsets=2, kid_subset_size=400, verbose=False
    )
    assert found == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-9)
    assert found == pytest.approx(clean_fid.kernel_distance(a.double().numpy(), b.double().numpy(), 2, 400), rel=1e-9)


def test_kernel_distance_of_random_subsets_is_theirs_within_its_own_noise():
    a, b = features(900, 32, 14), features(1100, 32, 15, 1.3, 0.2)
    found = kernel.kernel_distance(a, b, subsets=100, size=300)
    theirs = metric_kid.kid_features_to_metric(
        a.double(), b.double(), kid_subsets=100, kid_subset_size=300, verbose=False
    )
    error = theirs[metric_kid.KEY_METRIC_KID_STD] / 100**0.5
    assert abs(found - theirs[metric_kid.KEY_METRIC_KID_MEAN]) < 4 * error * 2**0.5
    assert (
        found
        == kernel.kernel_distance(a, b, subsets=100, size=300)
        != kernel.kernel_distance(a, b, subsets=100, size=300, seed=1)
    )


def test_kernel_distance_is_unbiased():
    """Of two draws from one distribution it is 0 within its noise, also for small subsets."""
    values = [kernel.kernel_distance(features(60, 4, 100 + i), features(60, 4, 200 + i), subsets=1) for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5


def test_kernel_distance_needs_two_images_of_both_kinds():
    with pytest.raises(DataError, match="at least 2 images of both kinds, and there are 1 and 9"):
        kernel.kernel_distance(features(1, 4, 0), features(9, 4, 0))


# --- Inception score


@pytest.mark.parametrize("n", [1000, 997])
def test_inception_score_is_torch_fidelitys_however_the_images_are_cut(n: int):
    logits = torch.randn(n, 50, generator=torch.Generator().manual_seed(16)) * 2
    score = inception_score.InceptionScore(n, 50)
    for piece in logits.double().softmax(dim=1).split(64):
        score.add(piece)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert score.value() == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-12)


def test_inception_score_of_certain_images_is_the_number_of_classes():
    score = inception_score.InceptionScore(200, 10)
    score.add(torch.eye(10).repeat(20, 1))
    assert score.value() == pytest.approx(10.0, rel=1e-12)
    with pytest.raises(DataError, match="at least as many images, not 9"):
        inception_score.InceptionScore(9, 10)


# --- precision and recall


@pytest.mark.parametrize("block", [64, 2048])
def test_precision_and_recall_are_torch_fidelitys(monkeypatch: pytest.MonkeyPatch, block: int):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    made, real = features(500, 16, 17, 0.8, 0.1).double(), features(400, 16, 18).double()
    theirs = metric_prc.prc_features_to_metric(
        made, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    found = neighbours.precision_recall(made, real, 3)
    assert found == (
        pytest.approx(theirs["precision"], abs=1e-6),
        pytest.approx(theirs["recall"], abs=1e-6),
    )  # steps are 1/500
    assert 0.3 < found[0] < 1 and 0.1 < found[1] < 0.9, "or nothing was tested"


def test_precision_and_recall_know_what_lies_apart():
    one = features(50, 4, 19)
    assert neighbours.precision_recall(one, one) == (1.0, 1.0)
    assert neighbours.precision_recall(one + 1000, one) == (0.0, 0.0)
    few = torch.cat(
        [one[:10], one[:10] + 1e-3, one[:10] - 1e-3, one[:10] + 2e-3]
    )  # a few modes only: precise, and little recalled
    precision, recall = neighbours.precision_recall(few, one)
    assert precision > 0.9 and recall < 0.5
    with pytest.raises(DataError, match="need more images than that: there are 3 and 50"):
        neighbours.precision_recall(one[:3], one)


@pytest.mark.parametrize("said", ["0 images", "1 image"])
def test_a_covariance_needs_two_images(said: str) -> None:
    moments = Moments(3)
    moments.add(torch.ones(int(said[0]), 3))
    with pytest.raises(DataError, match=f"^{said}: a covariance needs two$"):
        moments.statistics()
