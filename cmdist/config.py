"""Configurations of runs: a YAML file plus dotted overrides (`train.steps=100`), and what a run makes of them. Read by
build, pipelines and cluster only.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cmdist import migrations
from cmdist.errors import CmdistError, ConfigError
from cmdist.schema import MOVED, Config
from cmdist.sections import Mark, OneOf, Section
from cmdist.system import files, plain_yaml, urls
from cmdist.system.typed import shown

_KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `dotted.key=value` overrides.
    Raises ConfigError with one sentence that names the key.
    """
    try:
        text = files.text(Path(path))
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"config {path}: {error}") from error
    return parse(text, overrides, where=str(path))


def parse(text: str, overrides: Sequence[str] = (), where: str = "config") -> Config:
    """As `load`, from text. An older format is brought up first, so overrides are today's keys. Raises FormatError."""
    try:
        tree = plain_yaml.load(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must hold keys and values, as configs/digits/ct.yaml does")
    tree = migrations.CONFIG.migrate(tree, where)
    for number, override in enumerate(overrides, 1):
        _override(tree, override, number)
    return _validated(tree, where)


def of_tree(tree: migrations.Tree, where: str) -> Config:
    """A configuration that was written into another file, of any format."""
    return _validated(migrations.CONFIG.migrate(tree, where), where)


def overlaid(config: Config, known: migrations.Tree, where: str) -> Config:
    """With some keys as a tree of format 1 has them."""

    def over(tree: Any, other: Any) -> Any:
        if not (isinstance(tree, dict) and isinstance(other, dict)):
            return other
        return tree | {name: over(tree.get(name), value) for name, value in other.items()}

    return _validated(over(config.model_dump(mode="json"), migrations.CONFIG.migrate(known, where)), where)


def fixed(config: Config) -> Config:
    """With what a run fixes at its first start: the length of the curriculum, and the end of the learning rate."""
    steps = config.train.steps
    changes = {name: steps for name, value in by_key(config).items() if _is_length(name) and value is None}
    if config.optimizer.decay_end is None and config.optimizer.decay_fraction > 0:
        changes["optimizer.decay_end"] = steps
    return replaced(config, changes)


def continued(config: Config, before: Config) -> Config:
    """With what was fixed `before`, as far as it is not given; another optimizer.decay_fraction begins anew."""
    was, given = by_key(before), by_key(config)
    kept = [name for name, value in given.items() if _is_length(name) and value is None]
    if config.optimizer.decay_end is None and config.optimizer.decay_fraction == before.optimizer.decay_fraction:
        kept.append("optimizer.decay_end")
    return fixed(replaced(config, {name: was[name] for name in kept if name in was}))


def _is_length(name: str) -> bool:
    return name.rpartition(".")[2] == "total_steps"


def at_places_of(config: Config, newer: Config) -> Config:
    """With data, stores and files where a newer configuration of the same run says that they are now."""
    there = by_key(newer)
    places = (name for name, mark in marks(config).items() if mark.kind in ("place", "content"))
    return replaced(config, {name: there[name] for name in places if name in there})


def replaced(config: Config, changes: Mapping[str, Any]) -> Config:
    """With other values of some keys, {'train.steps': 100, ...}."""
    tree = config.model_dump(mode="json")
    for name, value in changes.items():
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[leaf] = value
    return Config.model_validate(tree)


def marks(config: Config) -> dict[str, Mark]:
    """{'run.seed': Mark(...), ...}: what the schema says beside each key that this configuration has."""

    def walk(prefix: str, section: Section) -> Iterator[tuple[str, Mark]]:
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, Section):
                yield from walk(f"{prefix}{name}.", value)
            else:
                (mark,) = (each for each in field.metadata if isinstance(each, Mark))
                yield f"{prefix}{name}", mark

    return dict(walk("", config))


def _validated(tree: migrations.Tree, where: str) -> Config:
    _refuse_secrets(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error, tree)}") from error


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `parse` gives it back."""
    return plain_yaml.dump(written(config))


def written(config: Config) -> migrations.Tree:
    """The tree of `dump`."""
    return migrations.CONFIG.stamp(config.model_dump(mode="json"))


def flat(config: Config) -> dict[str, Any]:
    """{'train.steps': 100, ...}: one entry for each leaf."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {
            k: v
            for name, child in value.items()
            for k, v in walk(f"{prefix}.{name}" if prefix else name, child).items()
        }

    return walk("", config.model_dump(mode="json"))


def by_key(config: Config) -> dict[str, Any]:
    """{'train.steps': 100, ...}: one entry for each key of the schema, in its order."""
    tree = config.model_dump(mode="json")
    values = {}
    for name in marks(config):
        value = tree
        for part in name.split("."):
            value = value[part]
        values[name] = value
    return values


def _override(tree: dict[str, Any], override: str, number: int) -> None:
    name, equals, value = override.partition("=")
    if not equals or not _KEY.fullmatch(name):  # it is not repeated: it may be secret
        raise ConfigError(f"override {number} must read key=value, e.g. train.steps=100")
    if name in MOVED:
        raise ConfigError(f"override of {name}: {name} is now {MOVED[name]}")  # without the value: it may be secret
    *path, leaf = name.split(".")
    node = tree
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override of {name}: '{part}' is a value, not a section")
    try:
        given = plain_yaml.load(value)
    except ValueError as error:
        raise ConfigError(f"override of {name}: {error}") from None
    if leaf == "kind" and given != node.get("kind"):
        _keep_common(node, _one_of(path), given)
    node[leaf] = given


def _keep_common(node: dict[str, Any], table: OneOf | None, kind: Any) -> None:
    """Of a section whose kind is overridden, keep what the file says that the new kind has too."""
    if table is not None and isinstance(kind, str) and kind in table.table:
        for name in [name for name in node if name not in table.section(kind).model_fields]:
            del node[name]


def _one_of(path: Sequence[str]) -> OneOf | None:
    """The table of a section of several kinds; where it lies in another such section, of the first kind that has it."""
    models: list[type[BaseModel]] = [Config]
    union: OneOf | None = None
    for part in path:
        field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        if field is None:
            return None
        union = next((each for each in field.metadata if isinstance(each, OneOf)), None)
        if union is not None:
            models = [union.section(kind) for kind in union.table]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            models = [field.annotation]
        else:
            return None
    return union


_WORDS = {
    "tuple_type": "a list is needed, e.g. [0.9999]",
    "model_type": "a section of keys is needed",
    "dict_type": "a section of keys is needed",
    "bool_parsing": "true or false is needed",
    "bool_type": "true or false is needed",
}


def _refuse_secrets(value: Any, key: str = "") -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _refuse_secrets(name, f"a key of {key or 'the configuration'}")
            _refuse_secrets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for child in value:
            _refuse_secrets(child, key)
    elif isinstance(value, str):
        try:
            urls.refuse_secrets(value)
        except CmdistError as error:
            raise ConfigError(f"{key} = {error}") from None


def _sentence(error: ValidationError, tree: Any) -> str:
    first = error.errors()[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *path, leaf = (str(part) for part in first["loc"])
        kind, allowed = _allowed(path, tree)
        near = difflib.get_close_matches(leaf, allowed, n=1)
        hint = f"it is now {MOVED[key]}; " if key in MOVED else f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{key}'; {hint}allowed {kind}: {', '.join(allowed)}{more}"
    if first["type"] == "missing":
        return f"key '{key}' is missing{more}"
    message = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    if not key:
        return f"{message}{more}"
    value = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    given = "" if isinstance(value, dict) else f" = {shown(value)}"
    return f"key '{key}'{given}: {message[0].lower()}{message[1:]}{more}"


def _allowed(path: Sequence[str], tree: Any) -> tuple[str, list[str]]:
    """Where, in words, and which keys are allowed in the section at `path` of a tree."""
    model: Any = Config
    kind = "here"
    for part in path:
        field, tree = model.model_fields[part], tree.get(part, {})
        table = next((each for each in field.metadata if isinstance(each, OneOf)), None)
        name = tree.get("kind", table.default) if table else ""
        model = table.section(name) if table else field.annotation
        kind = f"for kind {name}" if table else "here"
    return kind, list(model.model_fields)
