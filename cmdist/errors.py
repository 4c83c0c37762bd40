"""What a user did wrong, or what failed, in one sentence; `exit_code` is what the process ends with."""


class CmdistError(ValueError):
    """A sentence for the user: what is wrong, where, and what is allowed."""

    exit_code = 1
    passes = False  # whether a later start of the same command may not meet it


class ConfigError(CmdistError):
    """An impossible configuration or command line; raised before any process group or GPU is touched."""

    exit_code = 2


class DataError(CmdistError):
    """A data set that is missing, damaged or not what its index says."""


class CheckpointError(CmdistError):
    """A checkpoint that is damaged, of another run, or does not fit what is asked of it."""


class FormatError(CmdistError):
    """A file of a newer format than this version reads."""

    exit_code = 2


class Malformed(FormatError):
    """A file of an older format that is none: its sections are values, or the reverse."""


class ProgressLost(CheckpointError):
    """A run folder with traces of earlier progress and nothing committed: starting over is not ours to decide."""

    exit_code = 2


class LookupFailed(CmdistError):
    """The store could not be searched for checkpoints: not the same as 'there are none'."""

    exit_code = 3
    passes = True


class Damaged(CheckpointError):
    """A checkpoint, once committed, whose files are no longer what was committed."""


class RunInUse(CmdistError):
    """Another attempt, which is alive, trains in this run folder: this one must not be started again while it does."""

    exit_code = 4


class Fenced(CmdistError):
    """A newer attempt has taken the run over: this one may commit nothing any more, and must not be started again."""

    exit_code = 4


class StoreError(CmdistError, OSError):
    """A store that went on failing for a while; later it may work."""

    passes = True


class StoreMissing(CmdistError, OSError):
    """A bucket that is not there: not the same as an empty folder."""


class StoreDenied(CmdistError, PermissionError):
    """A store that refuses access."""
