"""Python's collector rests while packages are imported, and has no last look."""

import gc
import subprocess
import sys

import pytest

from cmdist.system import collector
from ranks import REPOSITORY


@pytest.mark.parametrize("enabled", [True, False])
def test_it_rests_and_then_is_as_it_was(enabled: bool) -> None:
    assert gc.isenabled()
    try:
        if not enabled:
            gc.disable()
        with pytest.raises(ImportError), collector.resting():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert gc.get_freeze_count() > 1000
    gc.unfreeze()


@pytest.mark.parametrize("spared", [True, False])
def test_the_end_looks_at_no_cycle_and_loses_nothing_else(spared: bool, tmp_path) -> None:
    script = (
        "import atexit, sys, tempfile, threading, time\nfrom cmdist.system import collector\n"
        f"{'collector.spare_the_end()' if spared else ''}\n"
        "class Cycle:\n    def __del__(self): print('looked at')\n"
        f"cycle = Cycle(); cycle.itself = cycle; folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
        "atexit.register(print, 'exit'); print('unflushed', end=' ')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.split()
    assert said == ["unflushed", "thread", "exit", *([] if spared else ["looked", "at"])]
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_spared_the_end() -> None:
    script = (
        "from cmdist.system import cli\n"
        "class Cycle:\n    def __del__(self): print('looked at')\n"
        "cycle = Cycle(); cycle.itself = cycle; cli.run(lambda arguments: print('done'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
