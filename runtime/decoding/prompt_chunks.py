"""Which calls a prompt's rows were run in: rows run in other calls may differ in their last bits."""

from __future__ import annotations

from dataclasses import dataclass, field

CHUNK = 128  # rows a call at most: what it computes with takes as much memory as several layers
SCORES_BYTES = 32 << 20  # attention scores of a layer: over a long past a call takes fewer rows


def chunk_rows(heads: int, length: int) -> int:
    """Rows that a call behind `length` others may take: what bounds the memory of attention scores over them."""
    return max(1, min(CHUNK, SCORES_BYTES // (heads * (length + CHUNK) * 4)))


@dataclass
class PromptChunks:
    """Where the full chunks ended that a sequence began with, each run through depths 1 to `depth` at once.

    Every prompt that begins with the same tokens is run in the same ones.
    """

    depth: int = 0
    ends: list[int] = field(default_factory=list)

    def add(self, start: int, stop: int, full: bool, depth: int) -> None:
        """Rows from `start` to `stop` were run in one call."""
        if full and start == (self.ends[-1] if self.ends else 0) and (not self.ends or depth == self.depth):
            self.depth = depth
            self.ends.append(stop)

    def within(self, length: int, depth: int) -> int:
        """How many of the first `length` rows a prompt that runs to `depth` would have run in the same calls."""
        return max((end for end in self.ends if end <= length), default=0) if depth == self.depth else 0

    def truncate(self, length: int) -> None:
        """Forget the rows at `length` and behind."""
        self.ends = [end for end in self.ends if end <= length]

    def fork(self) -> PromptChunks:
        return PromptChunks(self.depth, list(self.ends))
