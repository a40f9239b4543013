"""Early-exit decoding of one sequence, by the KV rule of its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.kv_rules import EXACT, KVRule
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.running.hidden import Hidden, joined
from rrt_edge.runtime.running.runner import (
    NEVER,
    BindingT,
    CacheT,
    Call,
    Part,
    PartDone,
    Pass,
    Runner,
    last_stayed,
)

Float = NDArray[np.float32]
Rows = NDArray[np.int64] | Hidden  # token ids [S] or hidden states [S, H]
MOST_WAITING = 64  # generated tokens that may wait after a depth: bounds the gap before the token that catches them up


@dataclass(frozen=True)
class Step:
    """Logits [V] of the next token, the depth they come from, and the gate's value there.

    `gates`: those of the depths but the last, as far as they were run and read. `watched`: the logits [V] of the depth
    to be watched, where the token went deeper.
    """

    logits: Float
    depth: int
    gate: float
    gates: tuple[float, ...] = ()
    watched: Float | None = None


@dataclass
class Seen:
    """What is seen of a token on its way down: its gates, and its logits at depth `watch`."""

    watch: int | None = None
    gates: tuple[float, ...] = ()
    logits: Float | None = None

    def add(self, done: Pass) -> None:
        """Take what a run returned; gates that a run in between did not read leave none behind it."""
        if len(self.gates) == done.first - 1:
            self.gates += done.gates
        if done.last == self.watch:
            self.logits = done.logits[-1]


class Cancelled(Exception):
    """Somebody asked a decoder to stop; what it holds is whole."""


class Decoder(Generic[CacheT, BindingT]):
    """One sequence: its state, and the block rows and steps spent on it. Where a call fails, it forgets what it held.

    `cancelled`, set by any thread, ends a call before its next block step.
    """

    def __init__(self, runner: Runner[CacheT, BindingT], rule: KVRule = EXACT) -> None:
        self.runner = runner
        self.loops = runner.architecture.loops
        self.state = SequenceState(runner, rule)
        self.block_rows = self.block_steps = 0  # rows through the block, and how often it was run
        self.cancelled = False
        self.prompt_end = 0  # tokens of the last prompt: those that wait are bounded by the context alone
        self._binding = runner.bind()

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return self.state.length

    def fork(self) -> Decoder[CacheT, BindingT]:
        """Another decoder of the same tokens, which shares what is held."""
        other = Decoder(self.runner, self.state.rule)
        other.state, other.prompt_end = self.state.fork(), self.prompt_end
        return other

    @property
    def chunk(self) -> int:
        """Rows that the next call may take: what bounds the memory of attention scores over so long a past."""
        return self.state.chunk

    def rewind(self, length: int) -> None:
        """Forget the tokens at `length` and behind (`SequenceState.rewind`)."""
        self.state.rewind(length)

    def prefill(self, ids: Sequence[int], policy: ExitPolicy, lazy: bool = False) -> None:
        """Feed prompt tokens whose logits nobody needs, through every depth the policy may use.

        With `lazy` (under `exact`) they run depth 1 alone, and the others when a later token goes deeper.
        """
        last = 1 if lazy and self.state.rule.exact else policy.depth or self.loops
        start = 0
        while start < len(ids):
            chunk, length = self.chunk, self.length
            rows = np.asarray(ids[start : start + chunk], np.int64)
            self._check_cancelled()
            with self._whole_or_nothing():
                self._run_down(rows, 1, last, NEVER, 0)
            self.state.chunks.add(length, self.length, len(rows) == chunk, last)
            start += chunk
        self.prompt_end = self.length

    def step(self, token: int, policy: ExitPolicy, watch: int | None = None) -> Step:
        """Feed one token; returns the logits behind it from the depth the policy lets it leave at.

        Args:
            watch: a depth whose logits come too, where the token goes deeper.
        """
        last, seen = policy.depth or self.loops, Seen(watch)
        self._check_cancelled()
        with self._whole_or_nothing():
            done = self._run_down(np.array([token], np.int64), 1, last, policy.threshold, 1, seen)
            return self._last_step(done, last, seen)

    def forced(self, ids: Sequence[int], policy: ExitPolicy) -> Iterator[Float]:
        """Feed a given text; yields the logits [n, V] behind its tokens, in order, as `step` gives them."""
        if policy.may_leave:
            for index, token in enumerate(ids):
                yield self.step(token, policy.at(index)).logits[None]
            return
        start = 0
        while start < len(ids):
            rows = np.asarray(ids[start : start + self.chunk], np.int64)
            with self._whole_or_nothing():
                yield self._run_down(rows, 1, policy.depth or self.loops, NEVER, len(rows)).logits
            start += len(rows)

    def advance(self, parts: Sequence[Part[CacheT]]) -> list[PartDone]:
        """Run parts of this sequence, each through its depth; what leaves where is the caller's to say."""
        self._check_cancelled()
        with self._whole_or_nothing():
            done = self.runner.step(self._binding, parts)
        self.block_rows += sum(len(part.rows) for part in parts)
        self.block_steps += 1
        return done

    def together(self, ids: Sequence[int]) -> PartDone:
        """Run tokens through depth 1 in one step, behind which they wait, and read all of them there."""
        least = np.zeros(len(ids), np.float32)
        (done,) = self.advance([Part(self.state.cache, 1, np.array(ids, np.int64), self.length, least)])
        self.state.leave(1, done.hidden)
        return done

    def go_on(self, gate: float, policy: ExitPolicy, seen: Seen) -> Step:
        """Have the last token, which waits behind depth 1, go deeper; as `step`.

        Args:
            gate: its gate there.
            seen: what was seen of it there.
        """
        last = policy.depth or self.loops
        self._check_cancelled()
        with self._whole_or_nothing(self.length - 1):
            row = self.state.waiting[0].take_last()
            self._catch_up(1, self.chunk - 1)
            exited, rows = self.state.deeper(1, self.state.nothing, row)
            return self._last_step(self._run_down(rows, 2, last, policy.threshold, 1, seen, exited, gate), last, seen)

    def _last_step(self, done: Pass, last: int, seen: Seen) -> Step:
        """What came of a token; those that have waited for long are caught up."""
        for depth in range(done.last, last):
            if self._generated_waiting(depth) > MOST_WAITING:
                self._catch_up(depth, 0)
        return Step(done.logits[-1], done.last, float(done.gate[-1]), seen.gates[: self.loops - 1], seen.logits)

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled

    @contextmanager
    def _whole_or_nothing(self, length: int | None = None) -> Iterator[None]:
        """`length`: tokens that stay where the call is cancelled; by default all so far."""
        length = self.length if length is None else length
        try:
            yield
        except Cancelled:
            self.rewind(length)  # the rows on their way are lost, those that waited are where they were or deeper
            raise
        except BaseException:
            self.rewind(0)  # rows on their way are lost: what is held must not depend on them
            raise

    def _run_down(
        self,
        rows: Rows,
        first: int,
        last: int,
        threshold: float,
        logit_count: int,
        seen: Seen | None = None,
        exited: Hidden | None = None,
        gate: float = 0.0,
    ) -> Pass:
        """Run rows down to `last` or to where the last one leaves, taking waiting rows along.

        Args:
            exited, gate: as for `_run`, of the depth before the first.
        """
        exited, seen = self.state.nothing if exited is None else exited, seen or Seen()
        while True:
            stop = self._next_waiting(first, last)
            if seen.watch is not None and first <= seen.watch:
                stop = min(stop, seen.watch)
            done = self._run(rows, first, stop, threshold, logit_count, exited, gate)
            seen.add(done)
            if done.last == last or float(done.gate[-1]) >= threshold:
                self.state.leave(done.last, joined(exited, done.hidden))
                return done
            self._catch_up(done.last, self.chunk - len(exited) - len(done.hidden))
            exited, rows = self.state.deeper(done.last, exited, done.hidden)
            first, gate = done.last + 1, float(done.gate[-1])

    def _next_waiting(self, first: int, last: int) -> int:
        """The first depth from `first` on after which rows wait, or `last`."""
        return next((depth for depth in range(first, last) if len(self.state.waiting[depth - 1])), last)

    def _generated_waiting(self, depth: int) -> int:
        """Generated tokens that wait after a depth."""
        lengths = self.state.cache.lengths
        return min(len(self.state.waiting[depth - 1]), lengths[depth - 1] - self.prompt_end)

    def _catch_up(self, depth: int, room: int) -> None:
        """Run the rows that wait after a depth through the next one, in chunks, until at most `room` are left."""
        waiting = self.state.waiting[depth - 1]
        while len(waiting) > max(room, 0):
            self._check_cancelled()
            exited, rows = self.state.overdue(depth, self.chunk)
            done = self._run(rows, depth + 1, depth + 1, NEVER, 0, exited)
            self.state.leave(depth + 1, joined(exited, done.hidden))

    def _run(
        self, rows: Rows, first: int, last: int, threshold: float, logit_count: int, exited: Hidden, gate: float = 0.0
    ) -> Pass:
        """`gate`: that of the last row at the depth before."""
        position = self.state.first_position(first, len(exited) + len(rows))
        logit_rows = range(max(0, len(rows) - logit_count), len(rows))
        stayed = last_stayed(len(rows), gate) if gate else None
        call = Call(rows, position, first, last, threshold, logit_rows, exited, stayed)
        done = self.runner.run(self._binding, self.state.cache, call)
        self.block_rows += len(rows) * (done.last - first + 1)
        self.block_steps += done.last - first + 1
        return done
