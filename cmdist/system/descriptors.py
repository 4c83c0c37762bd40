"""Open files that a rank needs: each gloo group keeps a connection to every other rank."""

import resource

from cmdist.errors import ConfigError

GROUPS = 4  # at most: torch's own, DeepSpeed's, that of small messages, that of the saver
EACH = 3  # descriptors of a group beside its connections, measured
OTHERS = 256  # shards that are open, readers, libraries, devices


def reserve(ranks: int) -> int:
    """Raise this process's soft limit of open files to what a run on `ranks` ranks needs; the number.

    Raises ConfigError if the hard limit is lower.
    """
    needed = (GROUPS * (ranks + EACH) if ranks > 1 else 0) + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    if hard != resource.RLIM_INFINITY and hard < needed and ranks > 1:
        raise ConfigError(
            f"{ranks} ranks need {needed} open files in each process, and the hard limit here is {hard}; raise it "
            "(ulimit -Hn, nofile in limits.conf, or LimitNOFILE of the daemon that starts the job)"
        )
    within = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, within), hard))
    return needed
