"""`Progress`: the callback through which long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int, str], None]  # done, in all (0: not known), what is done; after ": " what changes with it


def counted(items: Sequence[T], progress: Progress | None, what: str) -> Iterator[T]:
    """The items in turn; says how many are done when the next one is asked for."""
    for number, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(number, len(items), what)
