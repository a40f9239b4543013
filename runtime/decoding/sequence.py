"""`SequenceState`: the cache and the waiting rows of one sequence, by the KV rule it follows."""

from __future__ import annotations

from typing import Any, Generic

from rrt_edge.runtime.bundle.kv_rules import EXACT, KVRule
from rrt_edge.runtime.decoding.prompt_chunks import PromptChunks, chunk_rows
from rrt_edge.runtime.running.hidden import Hidden, joined
from rrt_edge.runtime.running.runner import CacheT, Runner


class WaitingRows:
    """Hidden states [n, H] of rows that wait after one depth, in order of position."""

    def __init__(self, nothing: Hidden) -> None:
        self._parts = [nothing]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Hidden) -> None:
        self._parts.append(rows)
        self._count += len(rows)

    def take(self, count: int | None = None) -> Hidden:
        """The first rows (all by default), which wait no longer."""
        rows = joined(*self._parts)
        count = len(rows) if count is None else min(count, len(rows))
        self._parts, self._count = [rows[count:]], len(rows) - count
        return rows[:count]

    def take_last(self) -> Hidden:
        """The last row, which waits no longer."""
        before = self.take(len(self) - 1)
        last = self.take()
        self.add(before)
        return last

    def all(self) -> Hidden:
        """The rows, which go on waiting."""
        return joined(*self._parts)

    def keep(self, count: int) -> None:
        """Forget all but the first rows."""
        self.take_back(self.take()[:count])

    def fork(self) -> WaitingRows:
        other = WaitingRows.__new__(WaitingRows)
        other._parts, other._count = list(self._parts), self._count
        return other

    def take_back(self, rows: Hidden) -> None:
        """Put rows in front of those that wait."""
        self._parts.insert(0, rows)
        self._count += len(rows)


class SequenceState(Generic[CacheT]):
    """The cache of one sequence and, under a rule by which rows wait, those that do.

    `waiting[d - 1]` holds the hidden states of rows that left after depth d: depth d has them and depth d + 1 lacks
    them. The next row to go deeper takes them along. What happens otherwise to a row that leaves says the `KVRule`.
    """

    def __init__(self, runner: Runner[CacheT, Any], rule: KVRule = EXACT) -> None:
        self.rule = rule
        self.loops = runner.architecture.loops
        self.nothing = runner.no_rows
        self.cache: CacheT = runner.new_cache(rule)
        self.waiting = [WaitingRows(self.nothing) for _ in range(1, self.loops)]
        self.chunks = PromptChunks()
        self._heads = runner.architecture.attention_heads

    @property
    def chunk(self) -> int:
        """Rows that the next call may take."""
        return chunk_rows(self._heads, self.length)

    def repeatable(self, length: int, depth: int | None) -> int:
        """How many of the first `length` tokens are held to the bit as a prompt that begins with them would run them.

        Args:
            depth: the deepest that the prompt runs; None: the last.
        """
        return self.chunks.within(length, depth or self.loops) if self.cache.keeps_all else 0

    @property
    def length(self) -> int:
        """Tokens that have run depth 1."""
        return len(self.cache.positions[0])

    def first_position(self, depth: int, count: int) -> int:
        """The position of the first of `count` rows that are about to run a depth."""
        if depth == 1 or self.rule.waits:
            return len(self.cache.positions[depth - 1])  # they stand right behind those that have
        return self.length - count

    def leave(self, depth: int, hidden: Hidden) -> None:
        """Rows [n, H], the last to have run `depth`, go no deeper for now."""
        if self.rule.waits and depth < self.loops:
            self.waiting[depth - 1].add(hidden)
        if self.rule.copied_depth is not None:
            for deeper in range(depth + 1, self.loops + 1):
                self.cache.copy_last(len(hidden), self.rule.copied_depth(depth), deeper)

    def deeper(self, depth: int, exited: Hidden, rows: Hidden) -> tuple[Hidden, Hidden]:
        """Return what runs the next depth when `rows` [n, H] go on, waiting rows included: (states that left, rows).

        `exited` [f, H] are those taken along before.
        """
        waiting = self.waiting[depth - 1].take()
        if self.rule.projects:
            return joined(waiting, exited), rows
        return exited, joined(waiting, rows)

    def overdue(self, depth: int, count: int) -> tuple[Hidden, Hidden]:
        """The first `count` rows that wait after a depth, to run the next alone: (states that have left, rows)."""
        waiting = self.waiting[depth - 1].take(count)
        nothing = waiting[:0]
        return (waiting, nothing) if self.rule.projects else (nothing, waiting)

    def fork(self) -> SequenceState[CacheT]:
        """Another state of the same tokens, which shares what is held."""
        other: SequenceState[CacheT] = SequenceState.__new__(SequenceState)
        other.rule, other.loops, other.nothing = self.rule, self.loops, self.nothing
        other.cache = self.cache.fork()
        other.waiting = [rows.fork() for rows in self.waiting]
        other.chunks, other._heads = self.chunks.fork(), self._heads
        return other

    def rewind(self, length: int) -> None:
        """Forget the tokens at `length` and behind; all of them, where a sliding window has left too few behind."""
        if not self.cache.reaches(length):
            length = 0
        for depth in range(1, self.loops):
            first = len(self.cache.positions[depth])  # position of the first row waiting after this depth
            self.waiting[depth - 1].keep(max(0, length - first))
        self.cache.truncate(length)
        self.chunks.truncate(length)
