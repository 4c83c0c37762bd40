"""Texts of others made fit for a terminal, and numbers with what they count."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """With control characters, which could move the cursor or hide what was printed, as escapes of Python."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def counted(n: int, one: str, several: str = "") -> str:
    """'1 shard', '2,048 shards'; `several` where the plural is not made by an s."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"
