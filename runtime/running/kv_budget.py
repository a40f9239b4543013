"""`KVBudget`: a limit on the memory that keys and values take together."""

from __future__ import annotations

import weakref
from typing import Any

from rrt_edge.runtime.errors import BadInputError, OutOfMemoryError


class KVBudget:
    """Bytes that the keys and values of all conversations with a model may take; None: as many as there are."""

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise BadInputError(f"KV budget {limit}: must be 1 byte or more")
        self.limit, self.used = limit, 0

    def take(self, size: int) -> None:
        """
        Raises:
            OutOfMemoryError: that would be more than there may be.
        """
        if self.limit is not None and self.used + size > self.limit:
            raise OutOfMemoryError(
                f"keys and values would take {self.used + size} bytes, over the budget of {self.limit}; "
                "close conversations, shorten the prompt or raise the KV budget"
            )
        self.used += size

    def give(self, size: int) -> None:
        self.used -= size

    def give_with(self, owner: Any, size: int) -> None:
        """Give so much back when nothing refers to `owner` any more."""
        weakref.finalize(owner, self.give, size)
