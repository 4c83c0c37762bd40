"""ADM has 32 groups at any width: a file of a narrow network does not say how many its normalizations have."""

import pytest
import torch

from cmdist import build, config
from cmdist.errors import ConfigError
from cmdist.nets import group_norm

NARROW = """
objective: {kind: denoising}
run: {name: x}
data: {url: nowhere, image_size: 8, channels: 3}
network: {model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1, head_channels: 32}
optimizer: {lr: 0.001}
train: {steps: 1, global_batch: 1, micro_batch: 1}
"""


def of(*overrides: str) -> config.Config:
    return config.parse(NARROW, overrides)


def test_the_key_gives_every_normalization_its_groups() -> None:
    groups = {key: group_norm.narrow(build.network(of(f"network.norm_groups={key}"))) for key in ("32", "by_width")}
    assert groups == {"32": [], "by_width": [8, 16, 24]}
    assert group_norm.narrow(build.network(of())) == [8, 16, 24], "what runs have had so far"
    with pytest.raises(ConfigError, match=r"network.norm_groups 5 does not divide the 32 channels"):
        build.network(of("network.norm_groups=5"))


def test_32_groups_are_another_function_with_the_same_weights() -> None:
    torch.manual_seed(0)
    adm, narrow = build.network(of("network.norm_groups=32")), build.network(of())
    for p in adm.parameters():
        torch.nn.init.normal_(p, std=0.1)
    narrow.load_state_dict(adm.state_dict())
    x, c = torch.randn(2, 3, 8, 8), torch.zeros(2)
    reference = torch.nn.GroupNorm(32, 32)  # torch's own, in the first place where they differ
    reference.load_state_dict(adm.input_blocks[1][0].in_layers[0].state_dict())  # type: ignore[index]
    h = adm.input_blocks[0][0](x)  # type: ignore[index,operator]
    assert torch.allclose(adm.input_blocks[1][0].in_layers[0](h), reference(h), atol=1e-6)  # type: ignore[index]
    assert (adm(x, c) - narrow(x, c)).abs().max() > 1e-3


@pytest.mark.parametrize("wide", [False, True])
def test_a_file_that_cannot_tell_is_refused_where_it_matters(wide: bool, tmp_path) -> None:
    more = ["network.model_channels=128"] if wide else []
    made = of(*more)
    (tmp_path / "config.yaml").write_text(config.dump(made))
    torch.save(build.network(made).state_dict(), tmp_path / "edm_x.pt")
    opened = (str(tmp_path / "config.yaml"), None, str(tmp_path / "edm_x.pt"))
    if wide:
        assert build.open_model(*opened).config == made
        return
    says = r"does not say how many groups .* 32, as in ADM, or 8 and 16 and 24, as here: set network.norm_groups"
    with pytest.raises(ConfigError, match=says):
        build.open_model(*opened)
    student = of("init=" + opened[2], "objective.kind=consistency_training")
    with pytest.raises(ConfigError, match=says):
        build.initialise(student, build.network(student))
    for key in ("32", "by_width"):
        (tmp_path / "config.yaml").write_text(config.dump(of(f"network.norm_groups={key}")))
        assert build.open_model(*opened).config.network.norm_groups == (32 if key == "32" else key)  # type: ignore[attr-defined]


def test_a_start_from_a_run_with_other_groups_is_refused() -> None:
    student = of("init=run", "objective.kind=consistency_training", "network.norm_groups=32")
    found = build.network(of()).state_dict()
    with pytest.raises(ConfigError, match="was trained with network.norm_groups None, this run has 32"):
        build.fitting(student, build.network(student), of(), found)
