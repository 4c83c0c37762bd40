import os
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import Field

from cmdist import config
from cmdist.errors import ConfigError
from cmdist.kinds.distances import CURRICULA
from cmdist.sections import Section
from cmdist.tracking import mlflow as tracking
from cmdist.train import beforehand

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
        ("train", "override 1 must read key=value"),
        ("run.name=a/b", "key 'run.name' = 'a/b'"),
        ("sampling.times=[80, 90]", "sampling.times [80.0, 90.0] must fall from noise.sigma_max (80.0)"),
        ("data.image_size=9", "data.image_size (9) must be divisible by 2"),
        ("noise.sigma_min=100", "noise.sigma_min (100.0) must be below noise.sigma_max (80.0)"),
        (
            "train.ema_ramp_up=0.05",
            "train.ema_ramp_up shortens half-lives in images, and train.ema [0.9999]",
        ),
        ("train.ema=[0.9, 0.9]", "names one twice; each may stand once"),
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
        ("train.steps=true", "key 'train.steps' = True: input should be a valid integer"),
        ("data.flip=1", "key 'data.flip' = 1: true or false is needed"),
        ("train.steps='10'", "key 'train.steps' = '10': input should be a valid integer"),
        ("train.steps=1:30", "key 'train.steps' = '1:30': input should be a valid integer"),
        ("train.steps=010", "key 'train.steps' = '010': input should be a valid integer"),
        ("train={steps: 1, steps: 2}", "override of train: the key 'steps' stands twice"),
        ("train.ema=[&a 0.9, *a]", "override of train.ema: an alias (*name) stands for another value"),
        ("run.root=s3://", "run.root = s3:// names no place; give one, e.g. s3://bucket/folder (an empty variable?)"),
        ("data.url=memory:///", "data.url = memory:/// names no place"),
        ("run.root=memory://runs", "key 'run.root' = 'memory://runs': memory ends with this process"),
        ("data.workers=100000", "key 'data.workers' = 100000: input should be less than or equal to 1024"),
        ("train.loss_scale=1e-300", "key 'train.loss_scale' = 1e-300: input should be greater than or equal to"),
        ("train.micro_batch=10000000000", "input should be less than or equal to 1048576"),
        ("sampling.ode_steps=1000000000", "input should be less than or equal to 100000"),
        (
            "objective.sigma_mean=1e9",
            "key 'objective.sigma_mean' = 1000000000.0: input should be less",
        ),
        ("objective.sigma_std=1e9", "input should be less than or equal to 20"),
        ("train.zero_stage=3", "key 'train.zero_stage' = 3: input should be 0, 1 or 2"),
    ],
)
def test_an_impossible_configuration_is_one_sentence(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(BASE, [override])
    assert says in str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


PD = ["objective.kind=progressive_distillation", "objective.teacher=runs/edm", "init=teacher"]

CD = ["objective.kind=consistency_distillation", "objective.teacher=runs/edm"]
TCM = ["objective.kind=truncated_consistency_training", "objective.first=runs/ect", "init=runs/ect"]
TCM += ["sampling.times=[80.0, 1.0]"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["objective.kind=alpha_flow"],
            "objective.kind alpha_flow gives the network a second noise level: it needs network.second_time true",
        ),
        (
            ["network.second_time=true"],
            "objective.kind denoising gives the network one noise level: network.second_time must be false",
        ),
        ([*PD, "init=null"], "the student begins as its teacher: init must be teacher, not null"),
        ([*PD, "init=runs/other"], "the student begins as its teacher: init must be teacher, not runs/other"),
        ([*PD, "objective.teacher=exact"], "key 'objective.teacher' = 'exact': the student becomes the teacher, so"),
        ([*PD, "objective.first_steps=12"], "key 'objective.first_steps' = 12: it is halved down to 1, so it must be"),
        (["objective.kind=truncated_consistency_training"], "key 'objective.first' is missing"),
        ([*TCM, "init=null"], "the student begins as the first stage: init must be runs/ect, not null"),
        ([*TCM, "objective.boundary=80.0"], "boundary (80.0) must lie between noise.sigma_min (0.002) and"),
        ([*TCM, "train.micro_batch=2"], "boundary_share (0.25) of train.micro_batch (2) is less than one image"),
        ([*TCM, "sampling.times=[80.0, 0.8]"], "sampling.times must not go below the boundary (1.0)"),
        (["train.label_dropout=0.1"], "train.label_dropout takes labels away: it needs network.null_label true"),
        (
            ["network.null_label=true", "data.classes=0"],
            "network.null_label is the label of no class: it needs",
        ),
        (["objective.augment=0.1"], "objective.augment tells the network how images were changed: it needs network.au"),
        (["train.ema=[0.9, 1.0]"], "train.ema 1 is a half-life in images below train.global_batch"),
        (
            [*CD, "data.classes=10", "objective.guidance_low=1"],
            "guidance_low and guidance_high limit objective.gui",
        ),
        (
            [*CD, "data.classes=10", "objective.guidance_high=5"],
            "guidance_low and guidance_high limit objective.gui",
        ),
        (
            ["network.null_label=true", "data.classes=10", "train.label_dropout=0.1", *PD],
            "train.label_dropout takes classes away, for which a teacher would be asked: it must be 0 with one",
        ),
        (
            [*CD, "data.classes=0", "objective.guidance=2.0"],
            "objective.guidance guides towards classes: it needs data.classes above 0",
        ),
        (
            [*CD, "data.classes=10", "objective.guidance=2.0", "objective.guidance_low=3", "objective.guidance_high=1"],
            "objective.guidance_low (3) must be below guidance_high (1)",
        ),
        (["objective.kind=easy_consistency_tuning", "objective.q=1.0"], "key 'objective.q' = 1.0: input should be gr"),
    ],
)
def test_an_impossible_objective_is_one_sentence(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(BASE, overrides)
    assert says in str(error.value) and error.value.exit_code == 2 and "\n" not in str(error.value)


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
    with pytest.raises(ConfigError, match="it is not YAML"):
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


CT = ["objective.kind=consistency_training"]
HUBER = [*CT, "objective.distance.kind=pseudo_huber"]


@pytest.mark.parametrize(
    ("before", "key", "value"),
    [
        (HUBER, "objective.distance.c", "1e300"),
        (CT, "objective.curriculum.n_timesteps", "1000000000000"),
        ([*CT, "objective.curriculum.kind=doubling"], "objective.curriculum.s1", "1000000000000"),
        ([*CT, "objective.index.kind=lognormal"], "objective.index.mean", "1e9"),
    ],
)
def test_a3_bounds_hold_in_every_section(before: list[str], key: str, value: str) -> None:
    with pytest.raises(ConfigError, match="key '[a-z.]+' = .*: input should be less than or equal to|key 'objective"):
        config.parse(BASE, [*before, f"{key}={value}"])


def unbounded(annotation: Any, limits: Sequence[Any] = ()) -> Iterator[str]:
    """The number types in an annotation that have no lower or no upper bound."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        limits = [*limits, *(limit for field in more for limit in getattr(field, "metadata", [field]))]
    if annotation in (int, float):
        kinds = {type(limit).__name__ for limit in limits}
        if not (kinds & {"Gt", "Ge"} and kinds & {"Lt", "Le"}):
            yield annotation.__name__
    elif get_origin(annotation) is not Literal:
        inner = limits if get_origin(annotation) in (Union, UnionType) else ()
        for part in get_args(annotation):
            yield from unbounded(part, inner)


def subclasses(kind: type) -> Iterator[type]:
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


def test_a3_every_number_of_every_section_has_bounds() -> None:
    assert [*unbounded(int), *unbounded(Annotated[float, Field(ge=0)]), *unbounded(dict[str, list[float]])] == [
        "int", "float", "float"
    ]  # fmt: skip
    assert not [*unbounded(Annotated[int | None, Field(gt=0, lt=9)]), *unbounded(Literal[1, 2])]
    without = {
        f"{section.__name__}.{name}"
        for section in subclasses(Section)
        for name, field in section.model_fields.items()
        for _ in unbounded(field.annotation, field.metadata)
    }
    assert without == set()


def numbers() -> list[str]:
    """Every key that takes a number, of the sections that every run has."""
    return [name for name, value in config.by_key(config.parse(BASE)).items() if isinstance(value, float)]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "true"])
def test_a3_no_key_takes_what_is_no_number(value: str) -> None:
    assert len(numbers()) > 10
    for key in numbers():
        with pytest.raises(ConfigError, match=f"key '{key}' = "):
            config.parse(BASE, [f"{key}={value}"])
    for key, inside in (("train.ema", "[0.9, {}]"), ("sampling.times", "[80.0, {}]"), ("optimizer.betas", "[{}, 0.9]")):
        with pytest.raises(ConfigError, match=f"key '{key}"):
            config.parse(BASE, [f"{key}={inside.format(value)}"])


SECRET = "s3://key:hunter2@bucket/x"


@pytest.mark.parametrize(
    "overrides",
    [
        [f"evaluation.references={{fid: '{SECRET}'}}"],
        [f"evaluation.references={{'{SECRET}': x}}"],
        [f"train.ema=['{SECRET}']"],
        [f"train.ema=[[{{a: '{SECRET}'}}]]"],
        [f"data.url=[{SECRET}"],
        [f"data.url={{{SECRET}"],
        [SECRET],
        [f"data.url {SECRET}"],
        [f"{SECRET}=1"],
        [f"data.url: {SECRET}"],
        ["data.url=hf://hunter2@datasets/x"],
        ["tracking.uri=postgresql://me:hunter2@host/db"],
    ],
)
def test_b3_no_error_repeats_a_secret_wherever_it_stands(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(BASE, overrides)
    assert "hunter2" not in str(error.value)


def test_c_a_configuration_of_nested_anchors_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    with pytest.raises(ConfigError, match="an alias"):
        config.parse(BASE + bomb)


def test_c_a_pipe_to_which_nobody_writes_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cmdist.system.files.PATIENCE", 0.2)
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: a pipe to which nobody has written for"):
        config.load(tmp_path / "a.yaml")


def test_c_a_pipe_of_the_shell_is_read(tmp_path) -> None:
    reading, writing = os.pipe()
    os.write(writing, BASE.encode())
    os.close(writing)
    assert config.load(f"/dev/fd/{reading}") == config.parse(BASE)
    os.close(reading)


@pytest.mark.parametrize("character", ["%", "?", "#"])
def test_a3_a_root_that_no_sqlite_uri_can_hold_is_refused(tmp_path, character: str) -> None:
    made = config.parse(BASE, [f"run.root='{tmp_path}/a{character}b'"])
    with pytest.raises(ConfigError, match=f"MLflow cannot have '[{character}]' in the path of its database"):
        tracking.check(beforehand.first_tracking_uri(made))
