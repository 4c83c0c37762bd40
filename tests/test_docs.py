"""Every command of the README and the pages parses, by the command's own parser, and every link leads somewhere."""

import argparse
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cmdist import config

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "cluster/README.md", *(ROOT / "docs").rglob("*.md")])
SCRIPTS = {
    "train": "pipelines/train.py",
    "evaluate": "pipelines/evaluate.py",
    "prepare_data": "pipelines/prepare_data.py",
}
LONGEST = 1500  # words of the README: what a first visit needs


class Parsed(Exception):
    """The arguments were understood; nothing else is to happen."""


def code(page: Path) -> Iterator[str]:
    """Lines of the page's code blocks, indented or fenced; those that end in a backslash joined with the next."""
    fenced, joined = False, ""
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            joined += line.strip().removesuffix("\\")
            if not line.endswith("\\"):
                yield joined
                joined = ""


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(script, arguments) of every command that runs one of ours."""
    for line in code(page):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for end in "|", ">":
            words = words[: words.index(end)] if end in words else words
        words = [word for word in words if "..." not in word and not re.search(r"[][<>]", word)]
        if not words or words[0] not in ("python", "deepspeed", "torchrun", "sbatch"):
            continue
        ours = next(
            (i for i, word in enumerate(words) if re.fullmatch(r"(pipelines|cluster)/\w+\.(py|sbatch)", word)), 0
        )
        if ours:
            yield words[ours], words[ours + 1 :]


def module(script: str) -> ModuleType:
    name = Path(script).stem
    spec = importlib.util.spec_from_file_location(f"of_docs_{name}", ROOT / script)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_every_command_of_the_pages_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    for name in ("parse_args", "parse_intermixed_args"):
        plain = getattr(argparse.ArgumentParser, name)

        def parse(parser: Any, arguments: Any = None, *more: Any, plain: Any = plain) -> None:
            raise Parsed(plain(parser, arguments, *more))

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    seen, modules, wrong = 0, {}, []
    for page in PAGES:
        for script, arguments in commands(page):
            seen += 1
            assert (ROOT / script).exists(), f"{page.name}: {script} is not there"
            if script.endswith(".sbatch"):  # the first word of its name says what it runs
                script = next((to for of, to in SCRIPTS.items() if Path(script).stem.startswith(of)), "")
                arguments = [a for a in arguments if a not in ("--watch", "--each") and not a.startswith("--ema ")]
                if script == SCRIPTS["train"]:
                    arguments = arguments if arguments and "=" not in arguments[0] else ["CONFIG", *arguments]
            try:
                modules.setdefault(script, module(script)).main(arguments)
            except Parsed as parsed:
                found = parsed.args[0]
                path = str(getattr(found, "config", ""))
                if script == SCRIPTS["train"] and (ROOT / path).is_file():
                    config.load(path, found.overrides)
            except (SystemExit, Exception) as error:
                wrong.append(f"{page.name}: {script} {shlex.join(arguments)}: {type(error).__name__} {error}")
    assert wrong == []
    assert seen > 40, "the pages show more commands than were found"


def test_every_link_of_the_pages_leads_somewhere() -> None:
    gone = [
        f"{page.name}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert gone == []


def test_the_readme_is_what_a_first_visit_needs() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= LONGEST
