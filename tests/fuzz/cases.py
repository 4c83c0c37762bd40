"""Kinds of cases: each damages a copy of the base and says which command is to meet it."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash
import yaml
from base import EVALUATE
from mutate import VALUES, changed, damaged, json_of, npz_of

from cmdist.checkpoints import checkpoint as checkpoints
from cmdist.checkpoints import sealed


@dataclass(frozen=True)
class Command:
    """A script with its arguments; `same`: the output of the command is what it is without the damage, or refused."""

    name: str
    arguments: list[str]
    same: bool = False


Case = Callable[[random.Random, Path], Command]


def configuration(draw: random.Random, root: Path) -> Command:
    path = root / "small.yaml"
    if draw.random() < 0.3:
        path.write_bytes(damaged(draw, path.read_bytes()))
    else:
        path.write_text(yaml.safe_dump(changed(draw, yaml.safe_load(path.read_text())), allow_unicode=True))
    more = draw.choice((["--dry-run"], ["--plan", "--ranks", "1"], None))
    return Command("train", [str(path), *more]) if more else Command("preflight", [str(path)])


def index(draw: random.Random, root: Path) -> Command:
    where, samples = root / "data" / "index.json", root / "data" / "index.npz"
    if draw.random() < 0.5:
        samples.write_bytes(npz_of(draw, samples.read_bytes()))
        tree = json.loads(where.read_text())
        tree["samples"]["checksum"] = "xxh3:" + xxhash.xxh3_128_hexdigest(samples.read_bytes())
        where.write_text(json.dumps(tree))
    else:
        where.write_bytes(json_of(draw, where.read_bytes()))
    if draw.random() < 0.5:
        return Command("preflight", [str(root / "small.yaml"), f"run.name=new{draw.randrange(10)}"])
    return Command("evaluate", ["reference", str(root / "data"), "--n", "80"])


def checkpoint(draw: random.Random, root: Path) -> Command:
    """Of the newest checkpoint: COMMIT, state.json under its own checksum, a file's bytes; or of what lies around."""
    run = root / "runs" / "small"
    folder = sorted((run / "checkpoints").iterdir())[-1]
    what = draw.choice(("COMMIT", "state.json", "bytes", "run.json", "config.yaml", "attempts", "gone"))
    if what == "COMMIT":
        (folder / what).write_bytes(json_of(draw, (folder / what).read_bytes(), sealed.seal))
    elif what == "state.json":
        content = json_of(draw, (folder / what).read_bytes())
        (folder / what).write_bytes(content)
        commit = json.loads((folder / "COMMIT").read_text())
        commit.pop("seal")
        commit["files"][what] = checkpoints.describe([content])
        (folder / "COMMIT").write_bytes(sealed.seal(commit))
    elif what == "bytes":
        path = draw.choice(sorted(folder.iterdir()))
        path.write_bytes(damaged(draw, path.read_bytes()))
    elif what == "run.json":
        (run / what).write_bytes(json_of(draw, (run / what).read_bytes(), sealed.seal))
    elif what == "config.yaml":
        (run / what).write_text(yaml.safe_dump(changed(draw, yaml.safe_load((run / what).read_text()))))
    elif what == "attempts":
        path = draw.choice(sorted((run / what).iterdir()))
        content = path.read_bytes()
        path.write_bytes(json_of(draw, content, sealed.seal) if content.startswith(b"{") else damaged(draw, content))
    else:
        draw.choice(sorted(path for path in run.rglob("*") if path.is_file())).unlink()
    command = draw.choice(("preflight", "list", "verify", "sample", "status", "steps", "glance", "export", "train"))
    if command in ("list", "verify"):
        return Command("checkpoints", [command, str(run)])
    if command == "sample":
        out = ["--out", str(root / "samples.png"), "--rows", "1", "--steps", "1"]
        return Command("sample", [str(run), *out], same=what in ("bytes", "attempts"))
    if command in ("status", "steps"):
        return Command("launch", [command, str(run)])
    if command == "glance":
        return Command("glance", [str(run), "--checkpoint", draw.choice(("2", "4", "4", "3", "-1", "99999999999"))])
    if command == "export":
        return Command("export", [str(run), "--format", "safetensors", "--out", str(root / "exported")])
    return Command(command, [str(root / "small.yaml"), "train.steps=5"])


def record(draw: random.Random, root: Path) -> Command:
    path = draw.choice(sorted((root / "runs" / "small" / "evaluations").glob("*.json")))
    path.write_bytes(json_of(draw, path.read_bytes()))
    if draw.random() < 0.4:
        return Command("launch", ["status", str(root / "runs" / "small")])
    return Command("evaluate", [each.replace("ROOT", str(root)) for each in EVALUATE])


def reference(draw: random.Random, root: Path) -> Command:
    path = next((root / "data").glob("statistics-*.npz"))
    path.write_bytes(npz_of(draw, path.read_bytes()))
    for made in (root / "runs" / "small" / "evaluations").glob("*.json"):
        made.unlink()
    arguments = [each.replace("ROOT", str(root)) for each in EVALUATE]
    return Command("evaluate", [*arguments, *draw.choice(([], ["--reference", f"fd={path}"]))])


def journal(draw: random.Random, root: Path) -> Command:
    folder = root / "runs" / "small" / "tracking"
    path = draw.choice([path for path in folder.iterdir() if path.suffix in (".json", ".jsonl")])
    lines = path.read_bytes().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = json_of(draw, lines[at]) + b"\n" if draw.random() < 0.7 else damaged(draw, lines[at])
    path.write_bytes(b"".join(lines))
    return Command("compare", [str(root / "runs" / "small"), "--out", str(root / "report")])


def tar(draw: random.Random, root: Path) -> Command:
    for name in ("index.json", "index.npz"):
        (root / "data" / name).unlink()
    path = draw.choice(sorted((root / "data").glob("*.tar")))
    path.write_bytes(damaged(draw, path.read_bytes()))
    if draw.random() < 0.2:
        path.rename(path.with_name(draw.choice(("a b.tar", "ä.tar", "x.y.tar", "shard.TAR", ".tar"))))
    return Command("prepare_data", ["shards", str(root / "data"), "--channels", "1"])


_WORDS = (
    "--n", "--seed", "--steps", "--ema", "--out", "--checkpoint", "--metrics", "--reference", "--weights", "--times",
    "--resume", "--rows", "--batch", "--html", "--experiment", "--uri", "--format", "--last", "--every", "--step",
    "--debug", "--help", "--qkv-order", "--inception", "--max-restarts", "--starts", "--image-size", "--hang-minutes",
    "train.steps=", "run.name=", "=", "a=b", "--", "-", "list", "verify", "thin", "copy", "move", "status", "steps",
    "reference", "digits", "folder", "shards", "zip", "lsun", "fid", "fd", "heun", "none", "auto", "safetensors",
)  # fmt: skip
_COMMANDS = {
    "evaluate": EVALUATE,
    "sample": ["ROOT/runs/small", "--out", "ROOT/s.png", "--rows", "1"],
    "compare": ["ROOT/runs/small", "--out", "ROOT/report"],
    "export": ["ROOT/runs/small", "--out", "ROOT/exported"],
    "glance": ["ROOT/runs/small", "--checkpoint", "4"],
    "checkpoints": ["verify", "ROOT/runs/small"],
    "launch": ["status", "ROOT/runs/small"],
    "preflight": ["ROOT/small.yaml", "run.name=other"],
    "train": ["ROOT/small.yaml", "--dry-run"],
    "prepare_data": ["shards", "ROOT/data", "--channels", "1"],
}


def command_line(draw: random.Random, root: Path) -> Command:
    name = draw.choice(sorted(_COMMANDS))
    arguments = list(_COMMANDS[name])
    for _ in range(draw.choice((1, 1, 2, 3))):
        at, kind = draw.randrange(len(arguments) + 1), draw.randrange(5)
        word = draw.choice((*_WORDS, *(str(value) for value in VALUES), "ROOT", "ROOT/data", "ROOT/nowhere"))
        word = word.replace("\0", "0")  # no command line holds it
        if kind == 0 and at < len(arguments):
            del arguments[at]
        elif kind <= 2 and at < len(arguments):
            arguments[at] = word
        else:
            arguments.insert(at, word)
    return Command(name, [each.replace("ROOT", str(root)) for each in arguments if each != "--debug"])


CASES: dict[str, Case] = {
    "configuration": configuration,
    "index": index,
    "checkpoint": checkpoint,
    "record": record,
    "reference": reference,
    "journal": journal,
    "tar": tar,
    "command_line": command_line,
}
