"""What a launcher tells a process of its job and its rank, in variables of the environment."""

import os
import re
from collections.abc import Mapping

from cmdist.errors import ConfigError

# What Slurm, torchrun, deepspeed and MPI tell a process about its job and its rank; SLURM_CONF is of the cluster.
_OF_RANKS = re.compile(
    r"(SLURM(?!_CONF$)|SRUN|PMI|PMIX|OMPI|TORCHELASTIC|MASTER)_.*"
    r"|(LOCAL_|GROUP_|ROLE_|CROSS_)?RANK|(LOCAL_|GROUP_|ROLE_|CROSS_)?WORLD_SIZE|(LOCAL|CROSS)_SIZE|ROLE_NAME"
)


def place() -> tuple[int, int, int]:
    """(rank, world size, local rank) from the variables of deepspeed, torchrun or Slurm; (0, 1, 0) without any.

    Of a Slurm step its own number of tasks counts, not the job's. Raises ConfigError for variables that contradict each
    other: ranks would wait for others that never come.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    slurm = "RANK" not in os.environ and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ
    if slurm:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
        names = ("SLURM_PROCID", tasks, "SLURM_LOCALID")
    elif "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} without RANK: a launcher sets both; unset it for one process"
        )
    try:
        rank, size, local = (int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True))
    except ValueError as error:
        raise ConfigError(f"the variables {', '.join(names)} must be whole numbers: {error}") from error
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    odd = not slurm and here.isdigit() and not local < int(here) <= size
    if odd or not (0 <= rank < size and 0 <= local < size):
        told = (*names, "LOCAL_WORLD_SIZE") if odd else names
        said = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in told)
        raise ConfigError(f"the variables {said} are those of no rank: 0 <= rank < ranks is needed")
    return rank, size, local


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that is no rank of the job around it, as a glance or a job that is submitted."""
    return {name: value for name, value in environment.items() if not _OF_RANKS.fullmatch(name)}
