"""Configurations of runs: a YAML file plus dotted overrides (`train.steps=100`), and what a run makes of them. Read by
build, pipelines and cluster only.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cmdist import migrations
from cmdist.errors import CmdistError, ConfigError
from cmdist.schema import Config, Mark
from cmdist.system import storage

__all__ = ["Config", "dump", "flat", "load", "parse"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `dotted.key=value` overrides. Raises ConfigError with one sentence that names the
    key.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror}") from error
    return parse(text, overrides, where=str(path))


def parse(text: str, overrides: Sequence[str] = (), where: str = "config") -> Config:
    """As `load`, from text. An older format is brought up first, so overrides are today's keys. Raises FormatError."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must hold keys and values, as configs/digits/ct.yaml does")
    tree = migrations.CONFIG.migrate(tree, where)
    for override in overrides:
        _override(tree, override)
    return _validated(tree, where)


def of_tree(tree: migrations.Tree, where: str) -> Config:
    """A configuration that was written into another file, of any format."""
    return _validated(migrations.CONFIG.migrate(tree, where), where)


def overlaid(config: Config, known: migrations.Tree, where: str) -> Config:
    """With some keys as a tree of format 1 has them."""
    tree = config.model_dump(mode="json")
    for name, value in migrations.CONFIG.migrate(known, where).items():
        tree[name] = tree[name] | value if isinstance(value, dict) else value
    return _validated(tree, where)


def fixed(config: Config) -> Config:
    """With what a run fixes at its first start: the length of the curriculum, and the end of the learning rate."""
    steps = config.train.steps
    ends = config.optimizer.decay_end is None and config.optimizer.decay_fraction > 0
    grows = config.curriculum.total_steps is None and config.curriculum.kind != "constant"
    return _with(
        config,
        {"optimizer": {"decay_end": steps} if ends else {}, "curriculum": {"total_steps": steps} if grows else {}},
    )


def continued(config: Config, before: Config) -> Config:
    """With what was fixed `before`, as far as it is not given; another optimizer.decay_fraction begins anew."""
    given, was = config.optimizer, before.optimizer
    end = was.decay_end if given.decay_end is None and given.decay_fraction == was.decay_fraction else given.decay_end
    total = before.curriculum.total_steps if config.curriculum.total_steps is None else config.curriculum.total_steps
    return fixed(_with(config, {"optimizer": {"decay_end": end}, "curriculum": {"total_steps": total}}))


def at_places_of(config: Config, newer: Config) -> Config:
    """With data, stores and files where a newer configuration of the same run says that they are now."""
    tree = config.model_dump(mode="json")
    for name, mark in marks().items():
        if mark.kind in ("place", "content"):
            *sections, leaf = name.split(".")
            node = tree
            for section in sections:
                node = node[section]
            node[leaf] = getattr(getattr(newer, sections[0]) if sections else newer, leaf)
    return Config.model_validate(tree)


def marks() -> dict[str, Mark]:
    """{'run.seed': Mark(...), ...}: what the schema says beside each key."""

    def walk(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, Mark]]:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from walk(f"{prefix}{name}.", field.annotation)
            else:
                (mark,) = (each for each in field.metadata if isinstance(each, Mark))
                yield f"{prefix}{name}", mark

    return dict(walk("", Config))


def _with(config: Config, sections: dict[str, dict[str, Any]]) -> Config:
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    )


def _validated(tree: migrations.Tree, where: str) -> Config:
    _refuse_secrets(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from error


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `parse` gives it back."""
    return yaml.safe_dump(written(config), sort_keys=False)


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
    found = {}
    for name in marks():
        section, _, leaf = name.rpartition(".")
        found[name] = (tree[section] if section else tree)[leaf]
    return found


def _override(tree: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override '{override}' must read key=value, e.g. train.steps=100")
    *path, leaf = name.split(".")
    node = tree
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override '{override}': '{part}' is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML") from error


def _refuse_secrets(value: Any, key: str = "") -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _refuse_secrets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str):
        try:
            storage.check_url(value)
        except CmdistError as error:
            raise ConfigError(f"{key} = {error}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = _fields(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{key}'; {hint}allowed here: {', '.join(allowed)}{more}"
    if first["type"] == "missing":
        return f"key '{key}' is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    return (
        f"{message}{more}" if not key else f"key '{key}' = {first['input']!r}: {message[0].lower()}{message[1:]}{more}"
    )


def _fields(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in path:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)
