"""The limit of open files, raised as far as a run needs it."""

import resource

import pytest

from cmdist.errors import ConfigError
from cmdist.system import descriptors


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[soft, hard] of a process that can be asked for anything."""
    own = [1024, 4096]

    def change(kind: int, new: tuple[int, int]) -> None:
        assert kind == resource.RLIMIT_NOFILE
        own[:] = new

    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(own))
    monkeypatch.setattr(resource, "setrlimit", change)
    return own


def test_the_soft_limit_is_raised_to_what_is_needed(limits: list[int]) -> None:
    needed = descriptors.reserve(480)
    assert needed >= 4 * 483 and limits == [needed, 4096]
    limits[:] = [1024, resource.RLIM_INFINITY]
    assert limits[0] < descriptors.reserve(1024) == limits[0] and limits[1] == resource.RLIM_INFINITY


@pytest.mark.parametrize(("soft", "ranks"), [(1024, 1), (1024, 64), (4096, 480), (resource.RLIM_INFINITY, 10_000)])
def test_a_limit_that_is_enough_stays(limits: list[int], soft: int, ranks: int) -> None:
    limits[:] = [soft, soft]
    descriptors.reserve(ranks)
    assert limits == [soft, soft]


def test_a_hard_limit_that_is_too_low_is_a_sentence(limits: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"^1024 ranks need 4364 open files in each process, and the hard limit here"):
        descriptors.reserve(1024)
    assert limits == [1024, 4096]
    limits[:] = [64, 128]
    descriptors.reserve(1)  # no connections at all: as much as there is
    assert limits == [128, 128]
