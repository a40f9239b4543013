"""`Closing`: objects that are closed with their owner, whichever thread made them."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol, TypeVar

from rrt_edge.runtime.errors import BadInputError

T = TypeVar("T")


class Closes(Protocol):
    def close(self) -> None:
        """Give back what it holds."""


class Closing:
    """Closes the objects that were added, as far as anybody still uses them: they are referred to weakly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: weakref.WeakSet[Closes] = weakref.WeakSet()

    def add(self, member: Closes) -> None:
        with self._lock:
            self._members.add(member)

    def close(self) -> None:
        """Close all members."""
        with self._lock:
            members = list(self._members)
        for member in members:
            member.close()


def closed() -> BadInputError:
    """The error for whoever goes on with a model that was closed."""
    return BadInputError("this model is closed; load the bundle again")


def still_open(resource: T | None) -> T:
    """Return a resource that a model holds until it is closed, and that is None afterwards.

    Raises:
        BadInputError: the model is closed.
    """
    if resource is None:
        raise closed()
    return resource
