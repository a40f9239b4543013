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
CHUNK = 256  # rows a call: bounds the memory of attention scores


@dataclass(frozen=True)
class Step:
    """Logits [V] of the next token, the depth they come from, and the gate's value there."""

    logits: Float
    depth: int
    gate: float


class Decoder:
    """One sequence: its cache, the rows that wait after each depth, and the block rows spent.

    `waiting[d - 1]` holds the hidden states [n, H] after depth d of the rows that depth d + 1 lacks.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.loops = graph.architecture.loops
        self.cache = KVCache(graph.architecture)
        self.block_rows = 0
        self.waiting: list[Float] = [np.zeros((0, graph.architecture.hidden_size), np.float32)] * self.loops
        self._binding = graph.bind()

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return self.cache.lengths[0]

    def rewind(self, length: int) -> None:
        """Forget the tokens at `length` and behind."""
        for depth in range(1, self.loops):
            first = self.cache.lengths[depth]  # position of the first row waiting after this depth
            self.waiting[depth - 1] = self.waiting[depth - 1][: max(0, length - first)]
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
        first, moving = 1, rows
        new = len(rows)
        while True:
            stop = self._next_waiting(first, last)
            done = self._run(moving, first, stop, threshold, wanted)
            left = float(done.gate[-1, -1]) >= threshold
            if left or done.last == last:
                self._wait(done.last, done.hidden)
                return done
            self._catch_up(done.last, CHUNK - new)
            moving = np.concatenate([self.waiting[done.last - 1], done.hidden])
            self.waiting[done.last - 1] = moving[:0]
            first = done.last + 1

    def _next_waiting(self, first: int, last: int) -> int:
        """The first depth from `first` on after which rows wait, or `last`."""
        return next((depth for depth in range(first, last) if len(self.waiting[depth - 1])), last)

    def _catch_up(self, depth: int, room: int) -> None:
        """Run the rows that wait after a depth through the next one, in chunks, until at most `room` are left."""
        while len(waiting := self.waiting[depth - 1]) > max(room, 0):
            done = self._run(waiting[:CHUNK], depth + 1, depth + 1, NEVER, wanted=False)
            self.waiting[depth - 1] = waiting[CHUNK:]
            self._wait(depth + 1, done.hidden)

    def _wait(self, depth: int, hidden: Float) -> None:
        if depth < self.loops:
            self.waiting[depth - 1] = np.concatenate([self.waiting[depth - 1], hidden])

    def _run(self, rows: NDArray[np.generic], first: int, last: int, threshold: float, wanted: bool) -> Pass:
        asked = [len(rows) - 1] if wanted else []
        done = self.graph.run(
            self._binding, self.cache, rows, first=first, last=last, threshold=threshold, logit_rows=asked
        )
        self.block_rows += len(rows) * (done.last - first + 1)
        return done
