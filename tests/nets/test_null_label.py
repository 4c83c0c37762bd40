"""The label of no class: a vector of its own beside those of the released layout."""

import pytest
import torch

from cmdist.core.guidance import NULL, Guidance, classifier_free
from cmdist.errors import DataError
from cmdist.nets.unet import UNet


def network(**more: object) -> UNet:
    torch.manual_seed(0)
    net = UNet(
        image_size=8,
        in_channels=1,
        model_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        head_channels=8,
        num_classes=10,
        **more,  # type: ignore[arg-type]
    )
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(-1.5, 1.0, batch)


def test_the_released_layout_stays_and_one_vector_comes_to_it() -> None:
    plain, more = set(network().state_dict()), set(network(null_label=True).state_dict())
    assert more - plain == {"label_emb.null"} and plain < more


def test_classes_are_as_without_it_and_no_class_is_its_vector() -> None:
    net, plain = network(null_label=True), network()
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if key != "label_emb.null"})
    x, c_noise = inputs()
    labels = torch.tensor([3, NULL, 9])
    with torch.inference_mode():
        mixed = net(x, c_noise, labels)
        assert torch.equal(net(x, c_noise, torch.tensor([3, 4, 9])), plain(x, c_noise, torch.tensor([3, 4, 9])))
        plain.label_emb.weight[4] = net.label_emb.null
        assert torch.equal(mixed, plain(x, c_noise, torch.tensor([3, 4, 9])))


def test_its_vector_learns_from_those_without_a_class_alone() -> None:
    net = network(null_label=True)
    x, c_noise = inputs()
    net(x, c_noise, torch.tensor([1, 2, 3])).square().sum().backward()
    assert net.label_emb.null.grad is not None and not net.label_emb.null.grad.any()
    net(x, c_noise, torch.tensor([1, NULL, 3])).square().sum().backward()
    assert net.label_emb.null.grad.any()
    assert net.label_emb.weight.grad[1].any() and not net.label_emb.weight.grad[0].any()


def test_a_network_without_it_knows_no_such_label() -> None:
    x, c_noise = inputs()
    for net, labels in ((network(), [1, NULL, 2]), (network(null_label=True), [1, -2, 2])):
        with pytest.raises(DataError, match="labels lie in"):
            net(x, c_noise, torch.tensor(labels))


def test_guided_is_what_both_passes_say() -> None:
    net = network(null_label=True)
    x, sigma = inputs()[0], torch.tensor([0.1, 1.0, 10.0])
    labels = torch.tensor([1, 2, 3])
    with torch.inference_mode():
        of_class, of_none = net(x, sigma, labels), net(x, sigma, torch.full_like(labels, NULL))
        guided = classifier_free(net, Guidance(2.5))(x, sigma, labels)
    torch.testing.assert_close(guided, of_none + 2.5 * (of_class - of_none), atol=1e-5, rtol=1e-5)
