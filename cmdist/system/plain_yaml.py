"""YAML in which a value is what it looks like: no anchors, no key twice, 1e-4 is a number, 1:30 and 010 are none.

YAML 1.1, as PyYAML reads it, takes 1:30 for 90, 010 for 8 and 1e-4 for a text, keeps the last of two values for a key,
and a few lines of nested anchors stand for more values than there is memory. The only door to yaml.
"""

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

DEEPEST = 20  # levels
_BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null"))
_RESOLVERS = [
    (_BOOL, re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"), "yYnNtTfFoO"),
    (
        _FLOAT,
        re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"),
        "-+0123456789.",
    ),
    (_FLOAT, re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), "-+."),
    (_INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)"), "-+0123456789"),
    (_NULL, re.compile(r"~|null|Null|NULL|"), "~nN\0"),
]


class Refused(yaml.YAMLError):
    """What YAML allows and is not read here."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses aliases and what is too deep."""
        if self.check_event(yaml.AliasEvent):
            raise Refused("an alias (*name) stands for another value; write the value itself")
        self._depth += 1
        if self._depth > DEEPEST:
            raise Refused(f"more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise Refused(f"the key '{key.value}' stands twice, again in line {key.start_mark.line + 1}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def ignore_aliases(self, data: Any) -> bool:
        """Everything is written out."""
        return True


for _kind in (_Loader, _Dumper):
    for _tag, _pattern, _first in _RESOLVERS:
        _whole = re.compile(f"(?:{_pattern.pattern})$")
        _kind.add_implicit_resolver(_tag, _whole, ["" if c == "\0" else c for c in _first])


def load(text: str) -> Any:
    """What a text says. Raises ValueError with the rest of a sentence, which repeats no value of the text."""
    try:
        return yaml.load(text, _Loader)
    except Refused as error:
        raise ValueError(str(error)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"it is not YAML{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not YAML ({type(error).__name__})") from None


def dump(tree: Any) -> str:
    """A text that `load` gives back, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def line(value: Any) -> str:
    """A value in one line that `load` gives back, as an override takes it."""
    return (
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6)
        .removesuffix("...\n")
        .strip()
    )
