"""The label of no class: a vector of its own beside those of the released layout."""

import pytest
import torch

from cmdist.core.guidance import NULL, Guidance, classifier_free
from cmdist.errors import DataError
from nets.filled import inputs, small


def test_the_released_layout_stays_and_one_vector_comes_to_it() -> None:
    plain, more = set(small().state_dict()), set(small(null_label=True).state_dict())
    assert more - plain == {"label_emb.null"} and plain < more


def test_classes_are_as_without_it_and_no_class_is_its_vector() -> None:
    net, plain = small(null_label=True), small()
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if key != "label_emb.null"})
    x, c_noise, _ = inputs()
    labels = torch.tensor([3, NULL, 9])
    with torch.inference_mode():
        mixed = net(x, c_noise, labels)
        assert torch.equal(net(x, c_noise, torch.tensor([3, 4, 9])), plain(x, c_noise, torch.tensor([3, 4, 9])))
        plain.label_emb.weight[4] = net.label_emb.null
        assert torch.equal(mixed, plain(x, c_noise, torch.tensor([3, 4, 9])))


def test_its_vector_learns_from_those_without_a_class_alone() -> None:
    net = small(null_label=True)
    x, c_noise, _ = inputs()
    net(x, c_noise, torch.tensor([1, 2, 3])).square().sum().backward()
    assert net.label_emb.null.grad is not None and not net.label_emb.null.grad.any()
    net(x, c_noise, torch.tensor([1, NULL, 3])).square().sum().backward()
    assert net.label_emb.null.grad.any()
    assert net.label_emb.weight.grad[1].any() and not net.label_emb.weight.grad[0].any()


def test_a_network_without_it_knows_no_such_label() -> None:
    x, c_noise, _ = inputs()
    for net, labels in ((small(), [1, NULL, 2]), (small(null_label=True), [1, -2, 2])):
        with pytest.raises(DataError, match="labels lie in"):
            net(x, c_noise, torch.tensor(labels))


def test_guided_is_what_both_passes_say() -> None:
    net = small(null_label=True)
    x, sigma = inputs()[0], torch.tensor([0.1, 1.0, 10.0])
    labels = torch.tensor([1, 2, 3])
    with torch.inference_mode():
        of_class, of_none = net(x, sigma, labels), net(x, sigma, torch.full_like(labels, NULL))
        guided = classifier_free(net, Guidance(2.5))(x, sigma, labels)
    torch.testing.assert_close(guided, of_none + 2.5 * (of_class - of_none), atol=1e-5, rtol=1e-5)
