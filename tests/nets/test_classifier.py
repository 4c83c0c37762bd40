"""The feature extractor of small images."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from cmdist.errors import DataError
from cmdist.nets.classifier import FEATURES, Classifier, train_classifier


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(np.round(data.images * 255 / 16).astype(np.uint8))[:, None], torch.from_numpy(
        data.target
    ).long()


def test_it_learns_digits_and_no_feature_is_dead(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    classifier, accuracy = train_classifier(images, labels, seed=0)
    assert accuracy > 0.96
    assert not classifier.training
    with torch.no_grad():
        features = classifier.features(images)
        wrong = int((classifier(images).argmax(1) != labels).sum())
    assert features.shape == (len(images), FEATURES)
    assert features.dtype == torch.float32
    assert (
        torch.linalg.eigvalsh(features.double().T.cov()).min() > 1e-4
    )  # a Fréchet distance needs a regular covariance
    assert wrong <= round((1 - accuracy) * 359) + 5  # held out: 359 images; nearly all mistakes are among them


def test_one_seed_gives_one_classifier_and_leaves_the_global_generator_alone(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (part[:200] for part in digits)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, accuracy = train_classifier(images, labels, seed=3, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second, again = train_classifier(images, labels, seed=3, epochs=1)
    other, _ = train_classifier(images, labels, seed=4, epochs=1)
    assert accuracy == again
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_held_out_images_do_not_train(digits: tuple[Tensor, Tensor]) -> None:
    """Of 20 images, exactly those 4 that are held out can be painted over without any effect on the weights."""
    images, labels = (part[:20] for part in digits)

    def weights(images: Tensor) -> Tensor:
        return train_classifier(images, labels, seed=0, classes=10, epochs=1)[0].head.weight

    plain, without_effect = weights(images), 0
    for i in range(20):
        painted = images.clone()
        painted[i] = 255 - painted[i]
        without_effect += torch.equal(weights(painted), plain)
    assert without_effect == 4


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (3, 32), (1, 4)])
def test_shapes(channels: int, size: int) -> None:
    classifier = Classifier(channels, 7)
    images = torch.randint(256, (5, channels, size, size), dtype=torch.uint8)
    assert classifier(images).shape == (5, 7)
    assert classifier.features(images).shape == (5, FEATURES)


def test_a_round_trip_through_its_state() -> None:
    classifier = Classifier(3, 4).eval()
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    back = Classifier.from_state_dict(classifier.state_dict())
    assert not back.training
    assert torch.equal(back(images), classifier(images))


def test_mistakes_are_a_sentence(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    with pytest.raises(DataError, match=r"uint8 images, not torch\.float32"):
        Classifier(1, 10)(images[:2].float())
    with pytest.raises(DataError, match="not those of a cmdist classifier"):
        Classifier.from_state_dict({"weight": torch.zeros(1)})
    with pytest.raises(DataError, match="10 images, 9 labels"):
        train_classifier(images[:10], labels[:9], seed=0)
    with pytest.raises(DataError, match="some to hold out: 1 image, "):
        train_classifier(images[:1], labels[:1], seed=0)
