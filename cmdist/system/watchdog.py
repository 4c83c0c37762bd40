"""No wait without an end: a process in which nothing happens for too long says so, prints the stacks of all its threads
and ends with exit code 1, wherever it is stuck.
"""

import faulthandler
import sys
import threading
import time

from cmdist.system import cli

EARLY = 0.5  # seconds before the end, for the sentence


class Watchdog:
    """Ends this process unless it is fed in time, as long as a `with` block lasts. A process has one.

    The end itself is a thread of C that needs no GIL, so a process that is stuck in a collective ends too.
    """

    def __init__(self, seconds: float, limit: str) -> None:
        self.seconds, self._limit = seconds, limit  # and what sets it, for the sentence
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        self.feed()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def feed(self, longer: float = 0.0) -> None:
        """Something has happened; the next thing may take `longer` seconds more than usual."""
        self._deadline = time.monotonic() + self.seconds + longer
        faulthandler.dump_traceback_later(self.seconds + longer, exit=True, file=sys.__stderr__ or 2)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._deadline = float("inf")
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while (left := self._deadline - EARLY - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
        cli.say_failure(f"nothing has happened for {self.seconds / 60:g} min ({self._limit}); where it is stuck:")
