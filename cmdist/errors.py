"""What a user did wrong, or what failed, in one sentence; `exit_code` is what the process ends with."""


class CmdistError(ValueError):
    """A sentence for the user: what is wrong, where, and what is allowed."""

    exit_code = 1


class ConfigError(CmdistError):
    """An impossible configuration or command line; raised before any process group or GPU is touched."""

    exit_code = 2


class DataError(CmdistError):
    """A data set that is missing, damaged or not what its index says."""


class CheckpointError(CmdistError):
    """A checkpoint that is damaged, of another run, or does not fit what is asked of it."""


class LookupFailed(CmdistError):
    """The store could not be searched for checkpoints: not the same as 'there are none'."""

    exit_code = 3
