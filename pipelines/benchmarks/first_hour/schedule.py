"""Parts one after the other, each in a process of its own with a limit of time, and the table of what they found."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmdist.system import launchers

REPOSITORY = Path(__file__).resolve().parents[3]
SHORTEST = 45.0  # seconds that a part is given, however small its share: processes take a while to start
Tell = Callable[[Mapping[str, Any]], None]
_ERROR = re.compile(r"(error: |preflight: .+: |[\w.]*(Error|Exception|Interrupt)\b)")


@dataclass(frozen=True)
class Part:
    """`function` ('module:name' of this folder) is called with a setup, a way to tell, and what is `given`."""

    name: str
    title: str
    share: float  # of the whole time, at most
    function: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """What all parts know."""

    device: str  # cuda or cpu
    out: Path

    @property
    def small(self) -> bool:
        """Whether networks are shrunken to what a CPU does in seconds."""
        return self.device == "cpu"

    def teller(self, name: str) -> Tell:
        """A function that adds to what part `name` has found and writes it at once."""
        facts: dict[str, Any] = {}

        def tell(more: Mapping[str, Any]) -> None:
            facts.update(more)
            path = self.out / "parts" / f"{name}.found"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".new").write_text(json.dumps(facts, default=str))
            path.with_suffix(".new").replace(path)

        return tell


def environment(device: str, scratch: str | None = None) -> dict[str, str]:
    """The environment of a part: one rank, without a launcher's variables, and no GPU if it is for the CPU.

    What it writes beside its results goes to the folder `scratch` (None: that of the part that asks). torch's compiler
    writes libraries in place: one that is ended in the midst of it would leave half a library in the cache of all who
    compile the same later.
    """
    kept = launchers.without_ranks(os.environ) | {"PYTHONUNBUFFERED": "1"}
    if scratch:
        kept |= {"TMPDIR": scratch, "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/compiled"}
    return kept | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def run_all(
    parts: Sequence[Part], command: Callable[[Part], list[str]], seconds: float, setup: Setup
) -> list[dict[str, Any]]:
    """Run the command of each part; the rows of the table, which is written after each."""
    for folder in ("parts", "logs"):
        (setup.out / folder).mkdir(parents=True, exist_ok=True)
    end, rows = time.monotonic() + seconds, []
    few = max(1.0, 1.0 / sum(part.share for part in parts))  # shares of a few parts are shares of the whole time
    for part in parts:
        most = max(part.share * few * seconds, SHORTEST)
        row = _run(part, command(part), most, end - time.monotonic(), seconds, setup)
        rows.append(row)
        (setup.out / "parts" / f"{part.name}.json").write_text(json.dumps(row, indent=1))
        (setup.out / "table.json").write_text(json.dumps(rows, indent=1))
        (setup.out / "table.md").write_text(table(rows))
        print(f"{part.name:18} {row['state']:8} {row['seconds']:6.1f} s  {_words(row)}", flush=True)
    return rows


def _run(part: Part, command: list[str], most: float, left: float, whole: float, setup: Setup) -> dict[str, Any]:
    limit = min(most, left)
    row: dict[str, Any] = {
        "part": part.name,
        "title": part.title,
        "state": "skipped",
        "reason": "",
        "seconds": 0.0,
        "found": {},
    }
    if left <= 0 or limit < min(SHORTEST, 0.5 * most, 0.1 * whole):
        return row | {"reason": f"{max(left, 0.0):.0f} s were left"}
    log, begin, used = setup.out / "logs" / f"{part.name}.log", time.monotonic(), _used()
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="part-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
            env=environment(setup.device, scratch),
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it has started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found_file = setup.out / "parts" / f"{part.name}.found"
    row["found"] = json.loads(found_file.read_text()) if found_file.exists() else {}
    found_file.unlink(missing_ok=True)
    row |= {"seconds": round(time.monotonic() - begin, 1), "cpu seconds": round(_used() - used, 1)}
    if code is None:
        return row | {"state": "cut off", "reason": f"not done after its {limit:.0f} s"}
    if code:
        return row | {"state": "failed", "reason": first_error(log.read_text(errors="replace")) or f"exit code {code}"}
    if "not there" in row["found"]:
        return row | {"state": "skipped", "reason": row["found"]["not there"]}
    return row | {"state": "done"}


def _used() -> float:
    """CPU seconds of all processes that were started and are done."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def first_error(text: str) -> str:
    """The first line of an output that names an error; '' if none does."""
    lines = text.replace("\r", "\n").splitlines()
    return next((line.strip()[:500] for line in lines if _ERROR.match(line)), "")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, one row for each part."""
    lines = ["| part | state | s | what was found |", "|---|---|---|---|"]
    for row in rows:
        words = _words(row).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row['title']} | {row['state']} | {row['seconds']:.0f} | {words} |")
    return "\n".join(lines) + "\n"


def _words(row: Mapping[str, Any]) -> str:
    """The reason, and what was found as far as it is short; the rest is in the JSON."""
    short = [
        f"{key} {_number(value)}"
        for key, value in row["found"].items()
        if isinstance(value, str | int | float) and len(str(value)) < 100 and key != "not there"
    ]
    return "; ".join([part for part in [row["reason"]] if part] + short)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
