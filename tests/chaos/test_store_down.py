"""A store that is away for a minute in the middle of training: the steps go on, the checkpoint arrives late, nothing is
lost.
"""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from harness import EVERY, Chaos, newest

from ranks import Ranks, run_pipeline

STEPS = 240
AWAY = 60.0  # seconds


def slowly(arguments: list[str]) -> None:
    """pipelines/train.py with steps so long that the minute lies in the middle of them."""
    from cmdist.train.trainer import Trainer

    step = Trainer.train_step

    def slow(self: Trainer, *rest: Any) -> Any:
        time.sleep(0.35)
        return step(self, *rest)

    Trainer.train_step = slow  # type: ignore[method-assign]
    run_pipeline("train", arguments)


def last(pattern: str, text: str) -> int:
    return max(map(int, re.findall(pattern, text)), default=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_without_the_store(tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")  # the harness sets them; taken back at the end
    chaos = Chaos(tmp_path, digits, ranks=1, steps=STEPS)  # trains all steps with the store there
    try:
        place = chaos.server.folder / "bucket/runs/patient"
        arguments = [chaos.config, *chaos.common, "run.name=patient", "train.max_missed_checkpoints=1000"]
        run = Ranks(1, tmp_path / "patient.log", slowly, arguments)

        def until(deadline: float, condition: Any) -> float:
            begin = time.monotonic()
            while not condition():
                assert run.processes[0].exitcode is None and time.monotonic() < begin + deadline, run.text
                time.sleep(0.05)
            return time.monotonic() - begin

        def step() -> int:
            return last(rf"(\d+)/{STEPS}", run.text)

        until(120, lambda: newest(place)[0] >= EVERY)
        chaos.server.kill()
        committed, before = newest(place)[0], step()
        time.sleep(AWAY)
        after = step()
        assert run.processes[0].exitcode is None, run.text
        assert newest(place)[0] == committed and "is tried again" in run.text
        assert after - before >= 40, f"only {after - before} steps in a minute without the store:\n{run.text}"
        under_way = last(r"the save of step (\d+) is still under way", run.text)
        assert before - EVERY <= under_way <= after
        chaos.server.start()
        # `under_way` may be the one whose COMMIT had arrived, but not the answer to it
        late = until(90, lambda: newest(place)[0] >= max(under_way, committed + 1))
        arrived = newest(place)[0]
        print(
            f"steps {before} to {after} in {AWAY:g} s without the store; step {arrived} was committed {late:.0f} s "
            "after its return"
        )
        assert run.join(300) == [0], run.text
        assert newest(place) == (STEPS, chaos.truth[STEPS]), "the end is that of the run whose store was always there"
    finally:
        chaos.close()
