"""What is to be closed with its owner, whichever thread made it."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class Closes(Protocol):
    def close(self) -> None:
        """Give back what it holds."""


class Closing:
    """Weakly: what nobody uses any more is not kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: weakref.WeakSet[Closes] = weakref.WeakSet()

    def add(self, one: Closes) -> None:
        with self._lock:
            self._all.add(one)

    def close(self) -> None:
        """Close all there are."""
        with self._lock:
            found = list(self._all)
        for one in found:
            one.close()
