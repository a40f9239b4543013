"""Early-exit decoding of one sequence with exact keys and values.

A row that leaves early waits with its hidden state. The next row that goes deeper takes the waiting ones along, through
the depths they are missing, in one pass: each depth sees the keys and values it would have seen without early exit
(synchronised decoding, as in FREE, arXiv 2310.05424).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.cache import KVCache
from rrt_edge.runtime.graph import Graph, Pass
from rrt_edge.runtime.policy import NEVER, ExitPolicy

Float = NDArray[np.float32]
Rows = NDArray[np.int64] | Float  # token ids [S] or hidden states [S, H]
CHUNK = 256  # rows a call: bounds the memory of attention scores


@dataclass(frozen=True)
class Step:
    """Logits [V] of the next token, the depth they come from, and the gate's value there."""

    logits: Float
    depth: int
    gate: float


class WaitingRows:
    """Hidden states [n, H] of rows that wait after one depth, in order of position."""

    def __init__(self, hidden_size: int) -> None:
        self._parts = [np.zeros((0, hidden_size), np.float32)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Float) -> None:
        self._parts.append(rows)
        self._count += len(rows)

    def take(self) -> Float:
        """All rows, which wait no longer."""
        rows = np.concatenate(self._parts)
        self._parts, self._count = [rows[:0]], 0
        return rows

    def keep(self, count: int) -> None:
        """Forget all but the first rows."""
        self.add(self.take()[:count])


class Decoder:
    """One sequence: its cache, the rows that wait after each depth, and the block rows spent.

    `waiting[d - 1]` holds the rows that have run depth d and that depth d + 1 lacks.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.loops = graph.architecture.loops
        self.cache = KVCache(graph.architecture)
        self.block_rows = 0
        self.waiting = [WaitingRows(graph.architecture.hidden_size) for _ in range(1, self.loops)]
        self._binding = graph.bind()

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return self.cache.lengths[0]

    def rewind(self, length: int) -> None:
        """Forget the tokens at `length` and behind."""
        for depth in range(1, self.loops):
            first = self.cache.lengths[depth]  # position of the first row waiting after this depth
            self.waiting[depth - 1].keep(max(0, length - first))
        self.cache.truncate(length)

    def prefill(self, ids: Sequence[int], policy: ExitPolicy) -> None:
        """Feed prompt tokens whose logits nobody needs, through every depth the policy may use."""
        last = policy.depth or self.loops
        for start in range(0, len(ids), CHUNK):
            rows = np.asarray(ids[start : start + CHUNK], np.int64)
            self._descend(rows, last, NEVER, wanted=False)

    def step(self, token: int, policy: ExitPolicy) -> Step:
        """Feed one token; returns the logits behind it from the depth the policy lets it leave at."""
        done = self._descend(np.array([token], np.int64), policy.depth or self.loops, policy.threshold, wanted=True)
        return Step(done.logits[-1], done.last, float(done.gate[-1, -1]))

    def _descend(self, rows: NDArray[np.int64], last: int, threshold: float, wanted: bool) -> Pass:
        """Run new rows down to `last` or to where the last one leaves, taking waiting rows along."""
        try:
            return self._run_down(rows, last, threshold, wanted)
        except BaseException:
            self.rewind(0)  # rows on their way are lost: what is held must not depend on them
            raise

    def _run_down(self, rows: NDArray[np.int64], last: int, threshold: float, wanted: bool) -> Pass:
        first, new = 1, len(rows)
        moving: Rows = rows
        while True:
            stop = self._next_waiting(first, last)
            done = self._run(moving, first, stop, threshold, wanted)
            left = float(done.gate[-1, -1]) >= threshold
            if left or done.last == last:
                self._wait(done.last, done.hidden)
                return done
            self._catch_up(done.last, CHUNK - new)
            moving = np.concatenate([self.waiting[done.last - 1].take(), done.hidden])
            first = done.last + 1

    def _next_waiting(self, first: int, last: int) -> int:
        """The first depth from `first` on after which rows wait, or `last`."""
        return next((depth for depth in range(first, last) if len(self.waiting[depth - 1])), last)

    def _catch_up(self, depth: int, room: int) -> None:
        """Run the rows that wait after a depth through the next one, in chunks, until at most `room` are left."""
        if len(self.waiting[depth - 1]) <= room:
            return
        rows = self.waiting[depth - 1].take()
        while len(rows) > max(room, 0):
            done = self._run(rows[:CHUNK], depth + 1, depth + 1, NEVER, wanted=False)
            self._wait(depth + 1, done.hidden)
            rows = rows[CHUNK:]
        self.waiting[depth - 1].add(rows)

    def _wait(self, depth: int, hidden: Float) -> None:
        if depth < self.loops:
            self.waiting[depth - 1].add(hidden)

    def _run(self, rows: Rows, first: int, last: int, threshold: float, wanted: bool) -> Pass:
        asked = [len(rows) - 1] if wanted else []
        done = self.graph.run(
            self._binding, self.cache, rows, first=first, last=last, threshold=threshold, logit_rows=asked
        )
        self.block_rows += len(rows) * (done.last - first + 1)
        return done
