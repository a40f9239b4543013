"""Prompts that begin alike: what one request has run is taken over by another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rrt_edge.runtime.decoding.common_prefix import common_prefix
from rrt_edge.runtime.decoding.sequence import SequenceState

LEAST = 16  # tokens: a shorter beginning is run again


@dataclass(frozen=True)
class Held:
    """A state and the tokens fed to it, the first `prompt` of which ran all loops up to `depth` (None: all)."""

    ids: Sequence[int]
    state: SequenceState[Any]
    prompt: int
    depth: int | None
    moving: bool  # some rows are on their way between depths
    reproducible: bool = False  # only rows that were run in the calls that the new prompt would be run in

    def usable(self, prompt: Sequence[int], depth: int | None) -> int:
        """Return how many tokens of a new prompt need not be run again; its last token always is."""
        shared = common_prefix(self.ids[: self.state.length], prompt[:-1])
        if self.moving:
            shared = min(shared, self.state.cache.lengths[-1])
        if not self.state.rule.exact:  # what a reply's tokens left behind depends on where they left
            shared = min(shared, self.prompt) if self.depth == depth else 0
        if self.reproducible:
            shared = self.state.repeatable(shared, depth)
        return shared if shared >= LEAST and self.state.cache.reaches(shared) else 0


def take_over(
    candidates: Iterable[Held], prompt: Sequence[int], depth: int | None, fresh: SequenceState[Any]
) -> tuple[SequenceState[Any], int]:
    """A state for a prompt, and how many of its tokens it holds already: of the best candidate, else `fresh`."""
    best, count = None, 0
    for candidate in candidates:
        usable = candidate.usable(prompt, depth)
        if usable > count:
            best, count = candidate, usable
    if best is None:
        return fresh, 0
    state = best.state.fork()
    state.rewind(count)
    return state, count
