"""Whether a run may go on under another configuration than its checkpoint's: key by key, as the schema's marks say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from cmdist import config as configuration
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.errors import CheckpointError
from cmdist.schema import Config
from cmdist.sections import Kind, Mark, OneOf, Section

HEADINGS: dict[Kind, str] = {
    "identity": "may not change in a run",
    "content": "may move, but what is there may not change in a run",
    "warned": "may change, with a warning: numbers change, not what is learned",
    "free": "may change",
    "place": "may change: where things are",
}


@dataclass(frozen=True)
class Change:
    """A key whose value is not what it was; of kind `content` the values are hashes."""

    key: str
    kind: Kind
    was: Any
    now: Any


def changes(was: Config, now: Config, was_measured: Mapping[str, str], now_measured: Mapping[str, str]) -> list[Change]:
    """What differs. `measured` has the hashes of what keys of kind `content` name; one that is unknown is no change."""
    before, after, differences = configuration.by_key(was), configuration.by_key(now), []
    for key, mark in (configuration.marks(was) | configuration.marks(now)).items():
        if mark.kind == "content":
            hashes = was_measured.get(key), now_measured.get(key)
            if None not in hashes and hashes[0] != hashes[1]:
                differences.append(Change(key, "content", *hashes))
            elif before.get(key) != after.get(key):
                differences.append(Change(key, "place", before.get(key), after.get(key)))
        elif before.get(key) != after.get(key):
            differences.append(Change(key, mark.kind, before.get(key), after.get(key)))
    return differences


def compared(
    config: Config, before: Config, checkpoint: Checkpoint, run_url: str, measured: dict[str, str]
) -> tuple[Config, list[Change]]:
    """`config` as it goes on from a checkpoint, whose configuration is `before`, and what has changed since; `measured`
    has the hashes that are known of what it learns from. Raises CheckpointError if the run would be another one.
    """
    config = configuration.continued(config, before)
    differences = changes(before, config, checkpoint.state.get("measured", {}), measured)
    if checkpoint.url.startswith(f"{run_url}/"):
        refuse(differences, checkpoint.url)
    return config, differences


def refuse(differences: list[Change], url: str) -> None:
    """Raise CheckpointError if the run of the checkpoint at `url` would be another one."""
    other = [change for change in differences if change.kind in ("identity", "content")]
    if other:
        each = "; ".join(f"{c.key} = {_shown(c, c.was)} and cannot go on with {_shown(c, c.now)}" for c in other)
        raise CheckpointError(
            f"{url} was trained with {each}: set it back, start a new run with another run.name, "
            f"or one from here with another run.name and --resume {url}"
        )


def _shown(change: Change, value: Any) -> str:
    return f"{value} (of what it names)" if change.kind == "content" else str(value)


def page() -> str:
    """docs/keys.md: every key with its meaning, its default, and whether it may change."""
    lines = ["# Every key of a configuration", "", "Made from the schema by `python -m cmdist.identity`.", ""]
    lines += ["Between two starts of a run, a key", ""]
    lines += [f"- `{kind}`: {text}" for kind, text in HEADINGS.items()]
    lines += ["", "A change of the first two kinds is refused: take another `run.name`, and with `--resume URL` go on"]
    lines += ["from a checkpoint of the first run there. A section with a `kind` has the keys of that kind only.", ""]
    lines += _table("", Config)
    tables: list[tuple[str, OneOf]] = list(_tables("", Config))
    for name, table in tables:
        for kind in table.table:
            section = table.section(kind)
            lines += ["", f"## `{name}: {{kind: {kind}}}`", "", str(section.__doc__), "", *_table(name, section)]
            tables += [each for each in _tables(name, section) if each not in tables]
    return "\n".join(lines) + "\n"


def _tables(prefix: str, section: type[Section]) -> Iterator[tuple[str, OneOf]]:
    """The sections of several kinds in a section, by name."""
    for name, field in section.model_fields.items():
        yield from ((f"{prefix}.{name}".strip("."), each) for each in field.metadata if isinstance(each, OneOf))


def _table(prefix: str, section: type[Section]) -> list[str]:
    rows = [
        f"| `{name}` | {_default(field)} | {mark.kind} | {mark.what} |" for name, field, mark in _keys(prefix, section)
    ]
    return ["| key | default | between two starts | what it is |", "|---|---|---|---|", *rows]


def _keys(prefix: str, section: type[Section]) -> Iterator[tuple[str, FieldInfo, Mark]]:
    for name, field in section.model_fields.items():
        full = f"{prefix}.{name}".strip(".")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            if not any(isinstance(each, OneOf) for each in field.metadata):
                yield from _keys(full, field.annotation)
        else:
            (mark,) = (each for each in field.metadata if isinstance(each, Mark))
            yield full, field, mark


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(page(), end="")
