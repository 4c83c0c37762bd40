"""run.json: which run a folder is, and where it is tracked. Sealed, written at each start of the training."""

from typing import Any

from cmdist import migrations
from cmdist.checkpoints import documents, sealed
from cmdist.errors import CheckpointError, CmdistError
from cmdist.system import storage
from cmdist.system.typed import short


def url(run_url: str) -> str:
    """Where it lies."""
    return storage.join(run_url, "run.json")


def read(run_url: str) -> dict[str, Any]:
    """`id`, `name`, `tracking_uri`, `experiment` and more, as today's format has them.

    Raises FileNotFoundError, CheckpointError if it is damaged, FormatError.
    """
    where = url(run_url)
    try:
        record = sealed.read(where, must=False)
    except ValueError as error:
        if isinstance(error, OSError | CmdistError):
            raise
        raise CheckpointError(f"{where} is damaged: {short(error)}; {documents.RUN.remedy}") from error
    return {"experiment": "cmdist"} | documents.RUN.check(migrations.RUN.migrate(record, where), where)


def write(run_url: str, record: dict[str, Any]) -> None:
    """Write it as it was `read`, or made. Raises StoreError."""
    sealed.write(url(run_url), sealed.seal(migrations.RUN.stamp(record)))
