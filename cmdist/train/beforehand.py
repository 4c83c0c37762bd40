"""What can be known of a start before anything has started: by one process, without a process group or a device.

Nothing large is read: weights by their names and shapes, a checkpoint by what it says of itself. Hashes of weights, and
every byte of a checkpoint, are looked at when the run starts.
"""

import os
from collections.abc import Callable
from pathlib import Path

from cmdist import build, identity, models, teachers
from cmdist.checkpoints import documents, progress, record, search
from cmdist.checkpoints.checkpoint import Checkpoint
from cmdist.config import Config
from cmdist.data.images import ShardedImages, open_dataset
from cmdist.errors import Damaged, DataError
from cmdist.evaluation import extractors
from cmdist.nets import lpips, released
from cmdist.system import storage
from cmdist.tracking import mlflow as tracking


def look(config: Config, run_url: str, mode: str) -> None:
    """Raise what would end a start of this run; `mode` is that of --resume."""
    for _, check in checks(config, run_url, mode):
        check()


def checks(config: Config, run_url: str, mode: str) -> list[tuple[str, Callable[[], object]]]:
    """(what, check) in order; each raises a CmdistError of its own."""
    opened: list[ShardedImages] = []
    return [
        ("data", lambda: opened.append(check_data(config))),
        ("weights", lambda: check_weights(config, run_url, mode)),
        ("tracking.uri", lambda: check_tracking(config, run_url)),
        ("checkpoints", lambda: check_resume(config, run_url, mode, *(data.index_hash for data in opened))),
    ]


def check_data(config: Config) -> ShardedImages:
    """The index is there, it is what the configuration says, and so is every shard that it names. Raises DataError."""
    data = build.dataset(config)
    there = set(storage.names(data.url))
    missing = [shard["name"] for shard in data.index["shards"] if shard["count"] and shard["name"] not in there]
    if missing:
        raise DataError(
            f"{data.url} lacks {len(missing)} of {len(data.index['shards'])} shards, the first is {missing[0]}"
        )
    if config.teacher == "exact":
        models.check_exact(data, conditional=bool(config.data.classes))
    return data


def check_weights(config: Config, run_url: str, mode: str) -> None:
    """What the run takes weights from is there, and fits. Raises CheckpointError, ConfigError."""
    models.check_weights(config, run_url, mode)
    if config.lpips:
        lpips.check(config.lpips.weights)
    if config.classifier:
        extractors.classifier(open_dataset(config.classifier))
    for what, url in (("teacher", config.teacher), ("guide", config.guide)):
        if url and url != "exact":
            _check_shapes(config, url, what)
    if config.frozen:
        teachers.check_helper(config, models.open_run(config.frozen).config)
    if config.start and mode in ("auto", "none") and not storage.exists(record.url(run_url)):
        _check_shapes(config, config.start, "init")


def _check_shapes(config: Config, url: str, what: str) -> None:
    """The weights at `url` have the architecture that is needed: a file as teacher or guide, and whatever a run starts
    from (init), this run's own. Raises CheckpointError, ConfigError.
    """
    if released.is_file(url):
        shapes = released.shapes(url, build.head_channels(config))
        if shapes is not None:
            if what != "init":
                teachers.check_guidable(config, config.null_label)
                released.check(build.on_meta(config.as_denoiser()), shapes, f"{what} {url}")
            else:
                build.fitting(config, build.on_meta(config), None, shapes)
        return
    run = models.open_run(url)
    if what != "init":
        teachers.check_denoiser(config, run.config, f"{what} {url}")
    else:
        build.fitting(config, build.on_meta(config), run.config, build.on_meta(run.config).state_dict())


def check_tracking(config: Config, run_url: str) -> None:
    """Where a new run is to be tracked is an address; a run stays where it has begun. Raises ConfigError."""
    if not storage.exists(record.url(run_url)):
        tracking.check(first_tracking_uri(config))


def first_tracking_uri(config: Config) -> str:
    """Where a new run is tracked."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(config)


def default_tracking_uri(config: Config) -> str:
    """SQLite below run.root; in the working directory if that is an object store."""
    root = storage.local_path(config.run.root)
    return f"sqlite:///{(root or Path.cwd()).absolute() / 'mlflow.db'}"


def check_resume(config: Config, run_url: str, mode: str, index_hash: str | None = None) -> None:
    """The run can go on from what it has, or begin, with a data set of this hash (None: it is not looked at).
    Raises CheckpointError, LookupFailed, ProgressLost.
    """
    if storage.exists(record.url(run_url)):
        record.read(run_url)
    entries = search.entries(run_url)
    counting = [entry for entry in entries if entry.counts]
    search.refuse_none(run_url, counting, mode)
    checkpoint = _newest(counting)
    if checkpoint is None and not any("DAMAGED" in entry.names or entry.counts for entry in entries):
        elsewhere = mode not in ("auto", "none")
        progress.refuse_lost(run_url, entries, elsewhere)
        checkpoint = models.open_run(storage.absolute(mode)).checkpoint if elsewhere else None
    if checkpoint is not None:
        documents.TRAINED.check(checkpoint.state, f"{checkpoint.url}/state.json")
        known = {"data.url": index_hash} if index_hash else {}
        identity.compared(config, models.config_of(checkpoint), checkpoint, run_url, known)


def _newest(counting: list[search.Entry]) -> Checkpoint | None:
    """The newest that training can go on from, as far as can be seen without its bytes."""
    for entry in reversed(counting):
        try:
            opened = search.open_entry(entry)
            if opened.whole:
                _ = opened.state
                return opened
        except Damaged:  # the start itself looks at the one before, and says so
            continue
    return None
