"""Random kills of training on an S3 server: every resume starts from the newest committed step, and the end is
bit-identical.
"""

from collections import Counter
from pathlib import Path

import pytest
from harness import Chaos


def go(
    folder: Path, digits: str, ranks: int, steps: int, kills: int, in_one: int, seed: int, store_too: float
) -> Counter[str]:
    chaos = Chaos(folder, digits, ranks, steps)
    try:
        done = 0
        for number in range(kills):
            done += chaos.run(f"killed-{number}", min(in_one, kills - done), seed + number, store_too)
            print(f"{done} kills on {ranks} ranks: {dict(sorted(chaos.kills.items()))}", flush=True)
            if done == kills:
                break
        return chaos.kills
    finally:
        chaos.close()


def test_some_kills(tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")  # the variables that the harness sets are taken back at the end
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    assert go(tmp_path, digits, ranks=1, steps=15, kills=6, in_one=6, seed=3, store_too=0.25).total() == 6


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("ranks", [1, 2])
def test_two_hundred_kills(tmp_path: Path, digits: str, ranks: int) -> None:
    kills = go(tmp_path, digits, ranks, steps=60, kills=100, in_one=25, seed=1000 * ranks, store_too=0.35)
    assert kills.total() == 100 and sum(n for moment, n in kills.items() if "store" in moment) >= 25
