import pytest

from cmdist import config
from cmdist.errors import ConfigError
from cmdist.kinds.distances import CURRICULA

BASE = """
objective: {kind: denoising}
run: {name: a}
data: {url: x, image_size: 8, channels: 1, classes: 10}
network: {model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1}
optimizer: {lr: 1.0e-3}
train: {steps: 10, global_batch: 64, micro_batch: 32}
"""


def test_dump_and_parse_are_inverse() -> None:
    c = config.parse(BASE)
    assert config.parse(config.dump(c)) == c


L1 = ["objective.distance.kind=l1"]


def test_overrides_reach_nested_keys() -> None:
    c = config.parse(BASE, ["train.steps=77", "train.ema=[0.9, 0.99]", "objective.kind=consistency_training", *L1])
    assert (c.train.steps, c.train.ema, c.objective.distance.kind) == (77, (0.9, 0.99), "l1")


def test_flat_names_every_leaf() -> None:
    flat = config.flat(config.parse(BASE))
    assert flat["train.steps"] == 10
    assert flat["network.channel_mult"] == [1, 2]
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.stps=3", "unknown key 'train.stps'; did you mean 'steps'? allowed here: steps, global_batch"),
        ("foo=1", "unknown key 'foo'; allowed here: objective, run, data"),
        ("train.steps=abc", "key 'train.steps' = 'abc': input should be a valid integer"),
        ("train.steps=0", "key 'train.steps' = 0: input should be greater than 0"),
        ("train.global_batch=33", "train.global_batch (33) must be a multiple of train.micro_batch (32)"),
        (
            "objective.kind=x",
            "key 'objective': kind 'x' is unknown; allowed: denoising, consistency_distillation, consistency_training",
        ),
        ("objective.kind=consistency_distillation", "key 'objective.teacher' is missing"),
        ("init=teacher", "init: teacher needs objective.teacher to be"),
        ("train=3", "key 'train' = 3"),
        ("train", "override 'train' must read key=value"),
        ("run.name=a/b", "key 'run.name' = 'a/b'"),
        ("sampling.times=[80, 90]", "sampling.times [80.0, 90.0] must fall from noise.sigma_max (80.0)"),
        ("data.image_size=9", "data.image_size (9) must be divisible by 2"),
        ("noise.sigma_min=100", "noise.sigma_min (100.0) must be below noise.sigma_max (80.0)"),
        ("train.ema=[0.9, 0.9]", "names a decay twice"),
        ("network.channel_mult=[]", "key 'network.channel_mult' = []: "),
        (
            "network.model_channels=4000000000",
            "key 'network.model_channels' = 4000000000: input should be less than or equal to 65536",
        ),
        (
            "network.num_res_blocks=3000000",
            "key 'network.num_res_blocks' = 3000000: input should be less than or equal to 100",
        ),
        (
            "train.loss_scale=1.0e+30",
            "key 'train.loss_scale' = 1e+30: input should be less than or equal to 4294967296",
        ),
        ("train.zero_stage=3", "key 'train.zero_stage' = 3: input should be 0, 1 or 2"),
    ],
)
def test_an_impossible_configuration_is_one_sentence(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(BASE, [override])
    assert says in str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_compiled_checkpointing_with_dropout_is_refused() -> None:
    both = ["train.compile=true", "network.checkpoint_activations=true"]
    config.parse(BASE, both)
    config.parse(BASE, [both[0], "network.dropout=0.1"])
    with pytest.raises(
        ConfigError, match="needs network.dropout 0: compiled checkpointing draws its masks in another order"
    ):
        config.parse(BASE, [*both, "network.dropout=0.1"])


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"key 'train.steps' is missing"):
        config.parse(BASE.replace("steps: 10, ", ""))


def test_not_yaml_and_no_file(tmp_path) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        config.parse("a: [")
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("kind", "foreign", "allowed"),
    [
        ("denoising", "objective.teacher=x", "kind denoising: kind, sigma_mean, sigma_std"),
        ("denoising", "objective.curriculum.kind=doubling", "kind denoising: kind, sigma_mean, sigma_std"),
        (
            "consistency_training",
            "objective.solver=euler",
            "kind consistency_training: kind, distance, weighting, index",
        ),
        ("consistency_training", "objective.teacher=x", "kind consistency_training: kind, distance, weighting, index"),
        ("consistency_training", "objective.distance.weights=x", "kind l2: kind"),
        ("consistency_training", "objective.curriculum.mu0=0.9", "kind constant: kind, n_timesteps, mu"),
        ("consistency_training", "objective.index.std=1.0", "kind uniform: kind"),
        ("consistency_training", "network.second=1", "kind adm: kind, model_channels, channel_mult"),
    ],
)
def test_a_key_of_another_kind_is_refused_with_those_that_are_allowed(kind: str, foreign: str, allowed: str) -> None:
    key = foreign.partition("=")[0]
    section = key.rpartition(".")[0]
    default = {"objective.distance": "l2", "objective.curriculum": "constant", "objective.index": "uniform"}
    given = [f"{section}.kind={default[section]}"] if section in default and "curriculum.kind" not in foreign else []
    with pytest.raises(ConfigError, match=f"unknown key 'objective|unknown key '{key}'") as error:
        config.parse(BASE, [f"objective.kind={kind}", *given, foreign])
    assert f"allowed for {allowed}" in str(error.value)


def test_a_kind_that_an_override_changes_keeps_what_both_have() -> None:
    cd = ["objective.kind=consistency_distillation", "objective.teacher=t", "objective.curriculum.n_timesteps=40", *L1]
    text = config.dump(config.parse(BASE, cd))
    ct = config.parse(text, ["objective.kind=consistency_training", "objective.curriculum.kind=doubling"])
    assert ct.objective.distance.kind == "l1" and ct.teacher is None
    assert ct.objective.curriculum.s0 == 2 and not hasattr(ct.objective.curriculum, "n_timesteps")


@pytest.mark.parametrize(("old", "new"), config.MOVED.items())
def test_a_key_that_has_moved_is_named_by_its_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"{old} is now {new.partition('(')[0]}"):
        config.parse(BASE, [f"{old}=1"])


def test_a_file_of_before_the_sections_had_kinds_is_read() -> None:
    old = BASE.replace("objective: {kind: denoising}", "objective: consistency_distillation\nteacher: t\ninit: teacher")
    old += (
        "loss: {distance: lpips, lpips_weights: w, huber_c: 3.0, sigma_mean: 1.0}\ncurriculum: {kind: paper, mu: 0.5}"
    )
    made = config.parse(old)
    assert (made.teacher, made.start, made.lpips.weights) == ("t", "t", "w")
    assert made.objective.curriculum == CURRICULA["paper"](kind="paper")
    assert made == config.parse(config.dump(made))
