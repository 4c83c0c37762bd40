"""Look after the checkpoints of a run, on a disk or an object store.

python pipelines/checkpoints.py list RUN                  step, bytes, age, world size, verified
python pipelines/checkpoints.py verify RUN [--step N]     read everything back and compare it with COMMIT; exit code 1
if anything is wrong
python pipelines/checkpoints.py thin RUN [--last N] [--every M]      remove what the rule leaves over, once the newest
is verified
python pipelines/checkpoints.py copy RUN[/checkpoints/step-...] URL  the newest, or that one, verified, into the run
folder URL
python pipelines/checkpoints.py move RUN URL              the whole run folder, which stays the same run; a folder that
was moved by other means is told of its new place by the same command
"""

import argparse
import shutil
import time
from collections.abc import Sequence

from cmdist import config as configuration
from cmdist import models
from cmdist.checkpoints import record as records
from cmdist.checkpoints import retention, sealed, search
from cmdist.checkpoints.attempt import Attempt
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.checkpoints.retention import Keep
from cmdist.checkpoints.search import Entry
from cmdist.errors import CheckpointError, CmdistError, ConfigError, Damaged
from cmdist.system import cli, storage, texts
from cmdist.train import lineage


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|verify|thin|copy|move")
    for name in ("list", "verify", "thin", "copy", "move"):
        commands.add_parser(name).add_argument("run", help="a run folder; for copy also the folder of a checkpoint")
    commands.choices["verify"].add_argument("--step", type=int, help="only this one")
    commands.choices["thin"].add_argument(
        "--last", type=int, help="whole checkpoints to keep; default: the run's train.keep_checkpoints"
    )
    commands.choices["thin"].add_argument(
        "--every", type=int, help="steps to keep too; default: the run's train.keep_every"
    )
    commands.choices["copy"].add_argument("to", metavar="URL", help="the run folder to copy into")
    commands.choices["move"].add_argument("to", metavar="URL", help="where it is to be, or is by now")
    options = parser.parse_args(arguments)
    url = storage.absolute(options.run)
    if options.command == "list":
        show(url)
    elif options.command == "verify":
        verify(url, options.step)
    elif options.command == "thin":
        thin(url, options.last, options.every)
    elif options.command == "copy":
        copy(url, storage.absolute(options.to))
    else:
        move(url, storage.absolute(options.to))


def found_in(run_url: str) -> list[Entry]:
    """The checkpoint folders of a run. Raises CheckpointError if there are none."""
    folders = search.entries(run_url)
    if not folders:
        raise CheckpointError(f"{run_url} has no checkpoints")
    return folders


def show(run_url: str) -> None:
    """Print a table."""
    print(f"{'step':>10}  {'attempt':>7}  {'bytes':>14}  {'age':>9}  {'ranks':>5}  {'verified':8}  what")
    for entry in found_in(run_url):
        size, age, ranks, what = "", "", "", "not finished"
        if "COMMIT" in entry.names:
            try:
                opened = search.open_entry(entry)
                size = f"{sum(file['size'] for file in opened.commit['files'].values()):,}"
                age = elapsed(time.time() - opened.commit["time"]) if "time" in opened.commit else ""
                ranks = str(opened.commit.get("world_size", ""))
                what = "whole" if opened.whole else "averages only"
            except CheckpointError as error:
                what = str(error)
        if entry.void:
            what = "does not count: a later attempt started before it"
        if "DAMAGED" in entry.names:
            said = storage.read(storage.join(entry.url, "DAMAGED"), 0, 500).decode(errors="replace")
            what = f"set aside: {said}"
        verified = "yes" if "VERIFIED" in entry.names else "no"
        line = f"{entry.step:>10,}  {entry.attempt:>7}  {size:>14}  {age:>9}  {ranks:>5}  {verified:8}  {what}"
        print(texts.printable(line))


def elapsed(seconds: float) -> str:
    """'3.5 h'."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def verify(run_url: str, step: int | None) -> None:
    """Read checkpoints back. Raises Damaged if one is not what was committed."""
    chosen = [entry for entry in found_in(run_url) if "COMMIT" in entry.names and step in (None, entry.step)]
    if not chosen:
        raise CheckpointError(
            f"{run_url} has no committed checkpoint" + (f" of step {step}" if step is not None else "")
        )
    bad = []
    for entry in chosen:
        begin = time.monotonic()
        try:
            opened = search.open_entry(entry)
            opened.verify()
            storage.write(storage.join(entry.url, "VERIFIED"), b"")
            size = sum(file["size"] for file in opened.commit["files"].values())
            print(
                f"step {entry.step:,}: {len(opened.commit['files'])} files, {size:,} bytes are right "
                f"({time.monotonic() - begin:.1f} s)"
            )
        except Damaged as error:
            print(f"step {entry.step:,}: {error}")
            bad.append(entry.step)
    if bad:
        raise Damaged(
            f"{len(bad)} of {len(chosen)} checkpoints of {run_url} are damaged: step {', '.join(map(str, bad))}"
        )


def thin(run_url: str, last: int | None, every: int | None) -> None:
    """Remove what the rule leaves over, after the newest checkpoint was verified."""
    if last is None or every is None:
        models.refuse_other(run_url)
        config_url = storage.join(run_url, "config.yaml")
        config = configuration.parse(storage.read(config_url).decode(), where=config_url)
        last = config.train.keep_checkpoints if last is None else last
        every = config.train.keep_every if every is None else every
    if last < 1 or every < 0:
        raise ConfigError(f"--last must be 1 or more and --every 0 or more, not {last} and {every}")
    newest = [entry for entry in found_in(run_url) if entry.counts][-1:]
    if not newest:
        raise CheckpointError(f"{run_url} has no committed checkpoint")
    opened = search.open_entry(newest[0])
    if not opened.whole:
        raise CheckpointError(f"{opened.url}, the newest, holds averages only: nothing is removed")
    opened.verify()
    what = retention.thinning(run_url, newest[0].step, newest[0].attempt, Keep(last, every))
    retention.thin(what)
    for entry in what.remove:
        print(f"removed            {entry.url}")
    for entry in what.strip:
        print(f"averages only now  {entry.url}")
    left = len(search.steps(run_url))
    print(f"{texts.counted(left, 'step')} {'is' if left == 1 else 'are'} left")


def copy(source: str, run_url: str) -> None:
    """Copy a checkpoint, its run.json and its configurations, every byte verified, COMMIT last."""
    from_run = source.rpartition("/checkpoints/")[0] or source
    opened: Checkpoint | None = search.open_folder(source) if from_run != source else search.newest(source)
    if opened is None:
        raise CheckpointError(f"{source} has no committed checkpoint")
    target = storage.join(run_url, "checkpoints", opened.url.rpartition("/")[2])
    theirs = records.read(from_run)
    new = not storage.exists(records.url(run_url))
    if not new and records.read(run_url)["id"] != opened.commit.get("run"):
        raise CmdistError(f"{run_url} is another run; copy into a folder of its own")
    models.refuse_other(from_run)
    opened.verify()  # nothing is written of a damaged one
    copied = Checkpoint(target, opened.step, opened.commit)
    for name in opened.commit["files"]:
        storage.write(storage.join(target, name), opened.read_file(name))
        copied.verify([name])
    if new:
        records.write(run_url, {"url": from_run} | theirs)  # by its place it is known as a copy
    for name in ("config.yaml", models.BEFORE):
        if storage.exists(storage.join(from_run, name)) and not storage.exists(storage.join(run_url, name)):
            storage.write(storage.join(run_url, name), storage.read(storage.join(from_run, name)))
    sealed.write(storage.join(target, "COMMIT"), sealed.seal(opened.commit))
    storage.write(storage.join(target, "VERIFIED"), b"")
    print(f"step {opened.step:,} is in {target}, verified")


def move(source: str, target: str) -> None:
    """Move a run folder on a disk, or take note that it was moved; it stays the same run."""
    here, there = bool(storage.names(source)), bool(storage.names(target))
    old, new = storage.local_path(source), storage.local_path(target)
    if here and there:
        raise CmdistError(f"{source} and {target} are both there: one of them is a copy, and was not moved")
    if here and (old is None or new is None):
        raise CmdistError(
            f"{source} cannot be moved to {target} from here: move it with the store's own tool, then give this "
            "command again"
        )
    if not storage.exists(storage.join(source if here else target, "run.json")):
        raise CmdistError(f"{source if here else target} is not a run folder: it has no run.json")
    known = lineage.moved(records.read(source if here else target), source, target)
    if here and old is not None and new is not None:
        Attempt.take(source).end()  # raises RunInUse if it is being trained
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(old, new)
    records.write(target, known)
    print(f"{target} is the run that was {source}")


if __name__ == "__main__":
    cli.run(main)
