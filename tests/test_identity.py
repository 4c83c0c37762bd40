"""What may change between two starts of a run: found from the marks in the schema, so that no key can be forgotten."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cmdist import build, config, identity, models
from cmdist.checkpoints import search
from cmdist.errors import CheckpointError
from cmdist.kinds.distances import CURRICULA, DISTANCES
from cmdist.kinds.networks import NETWORKS
from cmdist.kinds.objectives import INDICES
from cmdist.kinds.objectives import OBJECTIVES as OBJECTIVES_TABLE
from cmdist.schema import Config
from cmdist.sections import Section
from ranks import pipeline, train
from training import OBJECTIVES, committed, files, write_config

REST = """
run: {name: a}
data: {url: x, image_size: 8, channels: 1, classes: 10}
network: {kind: adm, model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1}
optimizer: {lr: 1.0e-3, decay_fraction: 0.5}
train: {steps: 10, global_batch: 64, micro_batch: 32}
"""
# Between them every kind of every section: a test says so.
OBJECTIVE = {
    "cd": """
objective: {kind: consistency_distillation, teacher: runs/edm, distance: {kind: lpips, weights: vgg.pth},
  curriculum: {kind: paper}}
""",
    "ict": """
objective: {kind: consistency_training, distance: {kind: pseudo_huber}, index: {kind: lognormal},
  curriculum: {kind: doubling}}
""",
    "edm": "objective: {kind: denoising}",
    "l1": "objective: {kind: consistency_training, distance: {kind: l1}, curriculum: {kind: constant}}",
    "l2": "objective: {kind: consistency_training}",
    "features": "objective: {kind: consistency_training, distance: {kind: features}}",
}
SONG = "model_channels: 16, channel_mult: [1, 2], num_blocks: 1"
OBJECTIVE |= {
    kind: OBJECTIVE["edm"] + re.sub("network: {.*}", f"network: {{kind: {kind}, {SONG}}}", REST)
    for kind in ("ddpmpp", "ncsnpp")
}
BASE = OBJECTIVE["cd"] + REST
OTHERS = {  # where neither another choice nor a little more would do
    "run.root": "elsewhere",
    "run.name": "b",
    "data.cache_gib": 1.5,
    "network.channel_mult": [1, 2, 2],
    "network.attention_resolutions": [4],
    "network.fourier_scale": 0.5,
    "noise.sigma_min": 0.003,
    "noise.sigma_max": 79.5,
    "objective.distance.c": 0.1,
    "objective.guidance_high": 5.0,
    "objective.guidance_range": [1.0, 3.0],
    "objective.first_steps": 64,
    "objective.curriculum.mu0": 0.5,
    "optimizer.betas": [0.5, 0.9],
    "train.ema": [0.5],
    "train.ema_ramp_up": 0.05,
    "train.global_batch": 128,
    "train.micro_batch": 16,
    "train.glance_device": "0",
    "sampling.times": [80.0, 0.7],
    "evaluation.references": {"fid": "elsewhere"},
    "evaluation.trusted": [f"sha256:{64 * '0'}"],
}


CONFIGS = Path(__file__).parents[1] / "configs/digits"
TRIED = {yaml.safe_load(text)["objective"]["kind"] for text in OBJECTIVE.values()}
# the newer rows of the table, as configs/digits has them
OBJECTIVE |= {
    path.stem: path.read_text()
    for path in sorted(CONFIGS.glob("*.yaml"))
    if yaml.safe_load(path.read_text())["objective"]["kind"] not in TRIED
}


@functools.cache  # thousands of times while tests are collected, by each worker
def was(name: str = "cd") -> Config:
    text = OBJECTIVE[name]
    return config.fixed(config.parse(text if "run:" in text else text + REST))


def keys(*kinds: str) -> list[tuple[str, str]]:
    """(configuration, key) of all keys of the given marks; those that all configurations share once, kinds apart."""
    seen, found = set(), []
    for name in OBJECTIVE:
        for key, mark in config.marks(was(name)).items():
            sort = tuple(getattr(section, "kind", "") for section in sections(was(name), key))
            if mark.kind in kinds and not key.endswith("kind") and (key, sort[-1]) not in seen:
                seen.add((key, sort[-1]))
                found.append((name, key))
    return found


def sections(made: Any, key: str) -> list[Any]:
    """The sections that a key lies in, the innermost last."""
    found = [made]
    for part in key.split(".")[:-1]:
        found.append(getattr(found[-1], part))
    return found


def another(name: str, key: str) -> Any:
    """A possible value that is not the configuration's."""
    value = config.by_key(was(name))[key]
    choices = get_args(field(name, key).annotation)
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        whole = [c for c in choices if isinstance(c, int) and c != value]
        return whole[0] if whole else value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    texts = [c for c in choices if isinstance(c, str) and c != value]
    return texts[0] if texts else 7 if "int" in str(field(name, key).annotation) else "elsewhere"


def field(name: str, key: str) -> Any:
    return type(sections(was(name), key)[-1]).model_fields[key.rpartition(".")[2]]


def changed(name: str, key: str) -> tuple[Config, Any]:
    """The configuration with another value of one key, past the checks of what fits together."""
    value = another(name, key)
    *above, inner = sections(was(name), key)
    *path, leaf = key.split(".")
    if not path:
        return inner.model_copy(update={leaf: value}), value
    made = type(inner).model_validate(inner.model_dump() | {leaf: tuple(value) if isinstance(value, list) else value})
    assert getattr(made, leaf) != getattr(inner, leaf), "the test must change it"
    for section, part in zip(reversed(above), reversed(path), strict=True):
        made = section.model_copy(update={part: made})
    return made, config.by_key(made)[key]


def leaves(made: Any, prefix: str = "") -> Iterator[str]:
    for name in type(made).model_fields:
        value = getattr(made, name)
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, Section) else [prefix + name]


def test_every_key_has_a_mark() -> None:
    for name in OBJECTIVE:
        marks = config.marks(was(name))
        assert list(marks) == list(leaves(was(name))) and all(mark.what for mark in marks.values())
    assert {mark.kind for mark in config.marks(was()).values()} == set(identity.HEADINGS)


def test_every_kind_of_every_section_is_tried() -> None:
    tried = {
        (key, value) for name in OBJECTIVE for key, value in config.by_key(was(name)).items() if key.endswith("kind")
    }
    tables = {"objective": OBJECTIVES_TABLE, "objective.distance": DISTANCES, "objective.curriculum": CURRICULA}
    tables |= {"objective.index": INDICES, "network": NETWORKS}
    assert {(f"{name}.kind", kind) for name, table in tables.items() for kind in table} <= tried


def test_another_kind_is_refused() -> None:
    for name, other in (("cd", "l2"), ("l1", "l2"), ("ict", "l2"), ("edm", "cd")):
        with pytest.raises(CheckpointError, match=r"trained with objective[.\w]*kind = \w+ and cannot go on with \w+"):
            identity.refuse(identity.changes(was(name), was(other), {}, {}), "url")


@pytest.mark.parametrize(("name", "key"), keys("identity"))
def test_another_value_of_what_a_run_is_is_refused_with_both(name: str, key: str) -> None:
    now, value = changed(name, key)
    before = config.by_key(was(name))[key]
    with pytest.raises(CheckpointError) as error:
        identity.refuse(identity.changes(was(name), now, {}, {}), "runs/a/checkpoints/step-1")
    assert f"trained with {key} = {before} and cannot go on with {value}: " in str(error.value)
    assert "another run.name and --resume runs/a/checkpoints/step-1" in str(error.value)


@pytest.mark.parametrize(("name", "key"), keys("free", "warned", "place"))
def test_another_value_of_the_rest_goes_on_and_is_told(name: str, key: str) -> None:
    now, value = changed(name, key)
    found = identity.changes(was(name), now, {}, {})
    identity.refuse(found, "url")
    assert [(c.key, c.kind, c.was, c.now) for c in found] == [
        (key, config.marks(was(name))[key].kind, config.by_key(was(name))[key], value)
    ]


@pytest.mark.parametrize(("name", "key"), keys("content"))
def test_what_is_learned_from_may_move_but_not_change(name: str, key: str) -> None:
    now, _ = changed(name, key)
    identity.refuse(identity.changes(was(name), now, {key: "xxh3:1"}, {key: "xxh3:1"}), "url")
    assert identity.changes(was(name), now, {key: "xxh3:1"}, {key: "xxh3:1"})[0].kind == "place"
    with pytest.raises(CheckpointError, match=f"{key} = xxh3:1 .* cannot go on with xxh3:2"):
        identity.refuse(identity.changes(was(name), was(name), {key: "xxh3:1"}, {key: "xxh3:2"}), "url")


def test_long_values_are_shown_in_full() -> None:
    long = [1.0 - 2.0**-n for n in range(1, 30)]
    now = config.parse(BASE, [f"train.ema={long}"])
    with pytest.raises(CheckpointError) as error:
        identity.refuse(identity.changes(was(), now, {}, {}), "url")
    assert str(long) in str(error.value)


def test_the_page_of_the_keys_is_current() -> None:
    page = (Path(__file__).parents[1] / "docs" / "keys.md").read_text()
    assert page == identity.page(), "python -m cmdist.identity > docs/keys.md"


def test_a_new_key_with_its_default_refuses_no_resume(tmp_path: Path, digits: str) -> None:
    """As a later version adds one: the checkpoint's configuration does not have it."""
    path = write_config(tmp_path, digits)
    assert train(1, tmp_path / "a.log", path, "train.steps=2").join() == [0]
    found = search.newest(f"{tmp_path}/runs/small")
    assert found is not None
    tree = found.state["config"]
    for section, key in (("network", "resblock_updown"), ("noise", "rho"), ("objective", "sigma_std")):
        del tree[section][key]
    now = config.fixed(config.load(path, ["train.steps=2"]))
    assert identity.changes(config.of_tree(tree, "state.json"), now, {}, {}) == []


def test_the_curriculum_and_the_learning_rate_keep_their_lengths() -> None:
    """A run that is made longer: N, mu and lr of the steps to come are those of the first start."""
    ct = ["objective.kind=consistency_training", "objective.distance.kind=l2"]
    first = config.fixed(config.parse(BASE, ct))
    longer = config.continued(config.parse(BASE, [*ct, "train.steps=40"]), first)
    assert (longer.objective.curriculum.total_steps, longer.optimizer.decay_end) == (10, 10)
    for step in range(12):
        assert build.numbers(longer, step) == build.numbers(first, step)
        assert build.lr_schedule(longer)(step) == build.lr_schedule(first)(step)
    assert build.lr_schedule(longer)(10) == 0 < build.lr_schedule(longer)(9)
    doubling = [*ct, "objective.curriculum.kind=doubling", "train.steps=1200000"]
    again = config.continued(config.parse(BASE, doubling), config.fixed(config.parse(BASE, doubling[:-1])))
    assert build.numbers(again, 9) == build.numbers(config.parse(BASE, doubling[:-1]), 9)
    # K is the run's; a new fall of the learning rate is the user's to begin
    with pytest.raises(CheckpointError, match="objective.curriculum.total_steps = 10 and cannot go on with 40"):
        moved = config.continued(config.parse(BASE, [*ct, "objective.curriculum.total_steps=40"]), first)
        identity.refuse(identity.changes(first, moved, {}, {}), "url")
    new = config.continued(config.parse(BASE, [*ct, "train.steps=40", "optimizer.decay_end=40"]), first)
    assert build.lr_schedule(new)(20) == new.optimizer.lr and build.lr_schedule(new)(30) == new.optimizer.lr / 2
    constant = config.continued(config.parse(BASE, [*ct, "train.steps=40", "optimizer.decay_fraction=0"]), first)
    assert build.lr_schedule(constant)(39) == constant.optimizer.lr


def test_a_longer_run_through_the_command(tmp_path: Path, digits: str) -> None:
    """It is told where its schedules end, its checkpoints keep their own configuration, and another one is refused."""
    path = write_config(tmp_path, digits)
    common = [*OBJECTIVES["ct"], "optimizer.decay_fraction=0.5"]
    run = tmp_path / "runs" / "small"
    straight = train(1, tmp_path / "straight.log", path, *common, "run.name=straight", "train.steps=6")
    assert straight.join() == [0], straight.text
    assert train(1, tmp_path / "a.log", path, *common, "train.steps=6", "train.checkpoint_every=3").join() == [0]
    assert files(run, 6) == files(tmp_path / "runs" / "straight", 6)
    longer = train(1, tmp_path / "b.log", path, *common, "train.steps=8", "sampling.ode_steps=5", "data.workers=1")
    assert longer.join() == [0], longer.text
    for line in (
        "the learning rate is 0 from step 6 on",
        "optimizer.decay_end=8 lets it fall over the last 0.5 of 8 steps",
        "the curriculum stays where it is from step 6 on",
        "changed      data.workers: 0 -> 1; sampling.ode_steps: 18 -> 5; train.checkpoint_every: 3 -> 10; "
        "train.steps: 6 -> 8",
    ):
        assert line in longer.text, longer.text
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["objective"]["curriculum"]["total_steps"], written["optimizer"]["decay_end"]) == (6, 6)
    own = {step: models.open_run(str(run), step).config for step in (6, 8)}
    assert [own[step].sampling.ode_steps for step in (6, 8)] == [18, 5]
    assert own[6].data.workers == 0 and own[6].train.steps == 6
    before = files(run, 8)
    refused = train(1, tmp_path / "c.log", path, *common, "train.steps=10", "noise.sigma_data=0.9", "data.flip=true")
    assert refused.join() == [2]
    says = "noise.sigma_data = 0.5 and cannot go on with 0.9"
    assert says in refused.text and "data.flip = False and cannot go on with True; " in refused.text
    assert files(run, 8) == before and not committed(run, 10)
    assert yaml.safe_load((run / "config.yaml").read_text()) == written
    # under another name, from there, it may
    url = f"--resume={run}"
    other = [*common, "train.steps=10", "noise.sigma_data=0.9", "run.name=other", "train.precision=bf16", url]
    branch = train(1, tmp_path / "d.log", path, *other)
    assert branch.join() == [0], branch.text
    assert "step         8 of 10" in branch.text and "noise.sigma_data: 0.5 -> 0.9" in branch.text
    assert "warning: train.precision was fp32 and is bf16 from step 8 on" in branch.text
    ended = models.open_run(f"{tmp_path}/runs/other").config
    assert (ended.noise.sigma_data, ended.objective.curriculum.total_steps) == (0.9, 6)


def test_each_checkpoint_is_used_with_its_own_configuration(tmp_path: Path, digits: str) -> None:
    """An older version let noise.sigma_data change in a run: evaluation of the step before must not follow."""
    path = write_config(tmp_path, digits)
    run = tmp_path / "runs" / "small"
    assert train(1, tmp_path / "a.log", path, "train.steps=2").join() == [0]
    pipeline("sample").main([str(run), "--rows", "1", "--out", f"{tmp_path}/a.png"])
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["noise"]["sigma_data"], tree["data"]["url"] = 0.9, "moved"
    (run / "config.yaml").write_text(json.dumps(tree))
    opened = models.open_run(str(run)).config
    assert (opened.noise.sigma_data, opened.data.url) == (0.5, "moved")  # where things are, today's is right
    pipeline("sample").main([str(run), "--rows", "1", "--out", f"{tmp_path}/b.png"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pipeline("export").main([str(run), "--format", "safetensors", "--out", f"{tmp_path}/out"])
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["noise"]["sigma_data"] == 0.5
