"""Calls of onnxruntime that may not take longer than a bound: one thread looks, and ends those that do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import RunOptions

PERIOD = 0.25  # seconds between two looks; nobody looks while nothing runs


class Deadlines:
    """The calls under way, and when each is to end."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[float, RunOptions]] = {}
        self._something = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[RunOptions], object], options: RunOptions, seconds: float) -> bool:
        """Make a call with these options, of which nobody else makes one; False where it was ended.

        What the call raises goes on, but for what it raises because it was ended.
        """
        deadline, key = time.monotonic() + seconds, id(options)
        self._running[key] = deadline, options
        if not self._something.is_set():
            self._start()
        try:
            call(options)
            return True
        except Exception:
            if options.terminate:
                return False
            raise
        finally:
            del self._running[key]
            options.terminate = False

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="deadlines", daemon=True)
            self._thread.start()
        self._something.set()

    def _look(self) -> None:
        while True:
            self._something.wait()
            time.sleep(PERIOD)
            now = time.monotonic()
            for deadline, options in list(self._running.values()):
                if now > deadline:
                    options.terminate = True
            if not self._running:
                self._something.clear()
                if self._running:  # one that began in between
                    self._something.set()

    def after_fork(self) -> None:
        """Forget the thread and the calls, which are the parent's."""
        self.__init__()  # type: ignore[misc]


DEADLINES = Deadlines()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DEADLINES.after_fork)
