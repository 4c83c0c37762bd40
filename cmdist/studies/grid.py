"""Studies: grids of runs with seeds. A run is named by what it learns from and how, so all studies share it.

A study file says, beside its title and question,

    names: identity                 or group: a run of each group, named by it, in the root itself
    data: data/digits               the prepared data set of all runs, below the root
    prepare: [digits]               arguments of prepare_data.py that make it
    seeds: [1, 2, 3]
    groups:
      teacher: {config: configs/digits/edm.yaml}
      cd:
        config: configs/digits/cd.yaml
        after: {objective.teacher: teacher}            a key, and the group whose run of the same seed it names
        axes:                                          each value of each axis: a title, and the keys that make it
          distance: {l1: {objective.distance: {kind: l1}}, l2: {objective.distance: {kind: l2}}}
        measure: {steps: ['1', '2'], n: 5000, at: [400]}
    panels: ...                     the figure (report/grids.py)
    claims: ...                     what a paper says, what is seen, and a verdict (studies/claims.py)
    text: ...                       the page's words; {{median: cd distance=l1 1}} stands for a number of the table
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from cmdist import config as configuration
from cmdist import identity, models
from cmdist.checkpoints import search
from cmdist.config import Config
from cmdist.data.images import open_dataset
from cmdist.errors import ConfigError
from cmdist.evaluation import stored
from cmdist.sections import Positive, PositiveFloat, Section
from cmdist.system import files, plain_yaml, storage

_UNNAMED = ("run.root", "run.name")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Measure(Section):
    """What is measured of a run: at its last step and at those of `at`, with so many steps of sampling. Of one that is
    there for others, with empty `steps`, nothing is.
    """

    steps: tuple[str, ...] | None = None  # of sampling; None: those of the configuration
    times: dict[str, list[PositiveFloat]] = Field(default={})  # of so many steps; else sampling.times
    n: Positive = 5000  # images
    at: tuple[Positive, ...] = ()  # steps of training


class Group(Section):
    """Runs of one configuration, one for each combination of the axes' values and each seed."""

    config: str
    title: str = ""
    keys: dict[str, Any] = Field(default={})
    after: dict[str, str] = Field(default={})
    axes: dict[Name, dict[str, dict[str, Any]]] = Field(default={})
    measure: Measure = Measure()


class Panel(Section):
    """A part of the figure: the median of a figure over seeds, and its range, against `x`."""

    title: str
    x: str  # images, tflop, steps (of sampling), group, or an axis
    by: str = "group"  # a curve for each: group, steps or an axis
    kind: Literal["curves", "bars"] = "curves"
    steps: tuple[str, ...] = ()  # of sampling; all, if none is named
    groups: tuple[str, ...] = ()  # all, if none is named
    where: dict[str, str] = Field(default={})  # value of an axis
    log: bool = True


class Claim(Section):
    """What a paper says, what the study sees (a text as the page's), and the verdict with its reason."""

    claim: str
    seen: str
    verdict: Literal["reproduced", "reproduced in part", "not reproduced", "out of reach here"]
    why: str = ""


class Study(Section):
    """A grid of runs, what is measured of them, and what is told of it."""

    title: str
    question: str
    data: str
    prepare: tuple[str, ...] = ()
    names: Literal["identity", "group"] = "identity"  # of runs; by group, they lie in the root itself, of one seed
    keys: dict[str, Any] = Field(default={})  # of every run
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]
    groups: Annotated[dict[Name, Group], Field(min_length=1)]
    panels: tuple[Panel, ...] = ()
    claims: tuple[Claim, ...] = ()
    text: str = ""

    def data_at(self, root: str) -> str:
        """Where the data set lies: below the root, unless it is a URL or an absolute path."""
        return self.data if "://" in self.data or self.data.startswith("/") else storage.join(root, self.data)

    @model_validator(mode="after")
    def _fits_together(self) -> "Study":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} name one twice")
        if self.names == "group" and (len(self.seeds) > 1 or any(group.axes for group in self.groups.values())):
            raise ValueError("names: group is for one seed and groups without axes, each of which is one run")
        order: list[str] = []
        for name, group in self.groups.items():
            for key, other in group.after.items():
                if other not in order:
                    above = ", ".join(order) or "there is none"
                    raise ValueError(f"groups.{name}.after.{key} = {other}: a group above it is allowed: {above}")
                if self.groups[other].axes:
                    raise ValueError(f"groups.{name}.after.{key} = {other}: it has axes, so it is not one run a seed")
            if empty := [axis for axis, values in group.axes.items() if not values]:
                raise ValueError(f"groups.{name}.axes.{empty[0]} has no value")
            order.append(name)
        for number, panel in enumerate(self.panels):
            if unknown := [name for name in panel.groups if name not in self.groups]:
                raise ValueError(f"panels.{number}.groups: {unknown[0]} is none of {', '.join(self.groups)}")
            axes = {axis for name in panel.groups or self.groups for axis in self.groups[name].axes}
            places = {"images", "tflop", "steps", "group"} | axes
            if panel.x not in places or panel.by not in {"group", "steps"} | axes:
                raise ValueError(
                    f"panels.{number}: x = {panel.x}, by = {panel.by}; allowed: {', '.join(sorted(places))}, "
                    f"and for by {', '.join(sorted({'group', 'steps'} | axes))}"
                )
        return self


@dataclass(frozen=True)
class Cell:
    """A run of a study: its place in the grid, its configuration with root and name, and what is measured."""

    group: str
    axes: Mapping[str, str]
    seed: int
    config: Config
    measure: Measure
    needs: tuple["Cell", ...]  # the runs that it follows

    @property
    def name(self) -> str:
        """Of the run: the same in every study that has it."""
        return self.config.run.name

    @property
    def url(self) -> str:
        """The run's folder."""
        return storage.join(self.config.run.root, self.name)

    @property
    def title(self) -> str:
        """Its place in the grid, in words."""
        return " ".join([self.group, *(f"{axis}={value}" for axis, value in self.axes.items()), f"seed={self.seed}"])

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of training at which it is measured, ascending."""
        return tuple(sorted({*self.measure.at, self.config.train.steps}))

    def samplers(self, step: int) -> Sequence[str]:
        """Steps of sampling that are measured after so many steps of training."""
        usual = self.config.usual_steps(step) if self.measure.steps is None else self.measure.steps
        return [*usual, *self.measure.times]

    def missing(self) -> list[int]:
        """Steps of training of which a figure is not there; the last, if nothing is measured of it and it is not
        trained.
        """
        if not any(self.samplers(step) for step in self.steps):
            return [] if self.trained() else [self.config.train.steps]
        there = {(row["step"], row["sampler"]) for row in self.figures()}
        return [step for step in self.steps if not {(step, str(s)) for s in self.samplers(step)} <= there]

    def trained(self) -> bool:
        """Whether the last step is committed."""
        return self.config.train.steps in search.steps(self.url)

    def figures(self) -> list[dict[str, Any]]:
        """{step, sampler, metric, value} of the first average, of this many images from seed 0."""
        rows = []
        for _, record in stored.records(storage.join(self.url, "evaluations")):
            if record["protocol"]["n"] != self.measure.n or record["protocol"]["seeds"][0] != 0:
                continue
            if record["sampling"].get("ema") != self.config.train.ema[0]:
                continue
            for name, value in record["metrics"].items():
                metric, _, sampler = name.rpartition("_")
                sampler = sampler.removesuffix("step") if sampler != "ode" else "heun"
                if sampler.isdigit() and not self._at_its_times(sampler, record["sampling"]):
                    continue
                rows.append({"step": record["step"], "sampler": sampler, "metric": metric, "value": value})
        return rows

    def times(self, sampler: str) -> Sequence[float]:
        """The noise levels of so many steps."""
        return self.measure.times.get(sampler, self.config.sampling.times)

    def _at_its_times(self, sampler: str, described: Mapping[str, Any]) -> bool:
        """Whether a record is of the noise levels that are asked for, and these were not searched on its metric."""
        if "times" not in described:  # a student of a fixed grid
            return True
        count = int(sampler)
        return list(described["times"])[:count] == list(self.times(sampler))[:count] and (
            "times searched on" not in described
        )


def load(path: str, seeds: Sequence[int] | None = None) -> Study:
    """Read a study file, with other `seeds` if they are given. Raises ConfigError with one sentence."""
    try:
        tree = plain_yaml.load(files.text(Path(path)))
    except OSError as error:
        raise ConfigError(f"study {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"study {path}: {error}") from error
    try:
        return Study.model_validate(tree | {"seeds": seeds} if seeds and isinstance(tree, dict) else tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"study {path}: {f'key {key!r}: ' if key else ''}{message}") from None


def cells(study: Study, root: str, prepared: bool = True) -> list[Cell]:
    """All runs of a study in ROOT/runs, those that are followed before those that follow; two that are the same run
    are one. Raises ConfigError, DataError.

    Not `prepared`: nothing that they learn from is looked at, so they have other names than they will have.
    """
    root = storage.absolute(root)
    index_hash = open_dataset(study.data_at(root)).index_hash if prepared else ""
    made: dict[str, Cell] = {}
    by_place: dict[tuple[str, int], Cell] = {}
    for name, group in study.groups.items():
        for axes, keys in _combinations(group):
            for seed in study.seeds:
                followed = {key: by_place[other, seed] for key, other in group.after.items()}
                config = _config(study, name, group.keys | keys, seed, root, followed)
                known = {key: cell.name for key, cell in followed.items()}
                known |= models.measured(config, index_hash) if prepared else {}
                label = name if study.names == "group" else f"{config.kind_name}-{digest(config, known)}"
                config = configuration.replaced(config, {"run.name": label})
                if study.names == "group":
                    _must_be_the_same(config)
                needs = {other.name: other for other in followed.values()}
                cell = Cell(name, axes, seed, config, group.measure, tuple(needs.values()))
                if wrong := [step for step in group.measure.at if step > config.train.steps]:
                    raise ConfigError(f"groups.{name}.measure.at: {wrong[0]} is above train.steps {config.train.steps}")
                by_place[name, seed] = cell
                made[cell.title] = cell
    return list(made.values())


def _must_be_the_same(config: Config) -> None:
    """Raises ConfigError if a run of that name is another one."""
    url = storage.join(config.run.root, config.run.name)
    if not storage.exists(place := storage.join(url, "config.yaml")):
        return
    theirs = configuration.parse(storage.read(place).decode(), where=place)
    for change in identity.changes(theirs, configuration.continued(config, theirs), {}, {}):
        if change.kind == "identity":
            raise ConfigError(
                f"{url} was trained with {change.key} = {change.was} and the study has {change.now}: take another "
                "--root, or remove that run"
            )


def digest(config: Config, known: Mapping[str, str]) -> str:
    """12 digits for all that a run is: every key but those of places, and `known` for keys that name a content."""
    values = configuration.by_key(configuration.fixed(config))
    for key, mark in configuration.marks(config).items():
        if mark.kind == "place" or key in _UNNAMED:
            del values[key]
    return hashlib.sha256(json.dumps(values | dict(known), sort_keys=True).encode()).hexdigest()[:12]


def _combinations(group: Group) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Each combination of the axes' values: their titles, and the keys of all of them."""
    for values in itertools.product(*(axis.items() for axis in group.axes.values())):
        titles = {axis: title for axis, (title, _) in zip(group.axes, values, strict=True)}
        yield titles, {key: value for _, keys in values for key, value in keys.items()}


def _config(
    study: Study, group: str, keys: Mapping[str, Any], seed: int, root: str, followed: Mapping[str, Cell]
) -> Config:
    """The configuration of a cell, not yet named. Raises ConfigError."""
    given = {
        "run.root": root if study.names == "group" else storage.join(root, "runs"),
        "run.seed": seed,
        "data.url": study.data_at(root),
        "tracking.experiment": "studies",
        **({"tracking.uri": f"sqlite:///{local}/mlflow.db"} if (local := storage.local_path(root)) else {}),
        **study.keys,
        **keys,
        **{key: cell.url for key, cell in followed.items()},
    }
    measure = study.groups[group].measure
    if measure.at:
        given["train.checkpoint_every"] = math.gcd(*measure.at)
        given["train.keep_checkpoints"] = 0
    try:
        return configuration.load(
            study.groups[group].config, [f"{key}={plain_yaml.line(value)}" for key, value in given.items()]
        )
    except ConfigError as error:
        raise ConfigError(f"groups.{group}: {error}") from None
