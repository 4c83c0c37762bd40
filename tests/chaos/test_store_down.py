"""A store that is away for a minute in the middle of training: the steps go on, the checkpoint arrives late, nothing is lost."""

import re
import time
from pathlib import Path

import pytest
from harness import Chaos, newest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_minute_without_the_store(tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")  # the harness sets them; taken back at the end
    chaos = Chaos(tmp_path, digits, ranks=1, steps=30)
    try:
        place = chaos.server.folder / "bucket/runs/patient"
        run = chaos.attempt("patient", "train.steps=100000", "train.max_missed_checkpoints=1000000", kill=None)

        def step() -> int:
            assert run.processes[0].exitcode is None, run.text
            return max(map(int, re.findall(r"(\d+)/100000", run.text)), default=0)

        while newest(place)[0] < 3:
            time.sleep(0.05)
        chaos.server.kill()
        committed, begin, before = newest(place)[0], time.monotonic(), step()
        time.sleep(60)
        after = step()
        assert newest(place)[0] == committed and after > before, "no commit without a store, but steps"
        chaos.server.start()
        while newest(place)[0] == committed:
            assert step() and time.monotonic() < begin + 180
            time.sleep(0.05)
        late = newest(place)[0]
        print(f"steps {before} to {after} in 60 s without the store; step {late} was committed {time.monotonic() - begin - 60:.0f} s after")
        assert late <= after, "the one that was under way arrives, late"
        run.kill()
        assert "is tried again" in run.text and "is not saved, the save of step" in run.text
    finally:
        chaos.close()
