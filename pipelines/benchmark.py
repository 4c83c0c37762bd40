"""Measure a part of cmdist beside what it competes with, in one run:
`benchmark.py PART`, one file of pipelines/benchmarks/ for each.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from cmdist.errors import ConfigError
from cmdist.system import cli

FOLDER = Path(__file__).parent / "benchmarks"
PARTS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def main(arguments: Sequence[str]) -> None:
    """Each part is a module with `main(arguments)`."""
    if not arguments or arguments[0] not in PARTS:
        raise ConfigError(
            f"benchmark.py needs one of {', '.join(PARTS)}" + (f", not '{arguments[0]}'" if arguments else "")
        )
    sys.path.insert(0, str(FOLDER.parent))
    import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    cli.run(main)
