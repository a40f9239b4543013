"""Full depth as a pipeline: one step runs a row at each depth, through weights that are read once for all of them.

While token t runs depth 2, the token that depth 1 says will follow it, its draft, runs depth 1 beside it; as long as
full depth agrees with the drafts, each step brings a token. Where it does not agree, the rows behind are dropped, and
one step at depth 1 was in vain. The tokens are those of full depth, whatever was drafted: a draft only decides which
rows are computed ahead of time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.looping import Looping
from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.decoding.reply import Drafts
from rrt_edge.runtime.decoding.sampler import Picked, Sampler
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.running.runner import NEVER, Part, PartDone, last_stayed

Float = NDArray[np.float32]


@dataclass
class _Row:
    """A token on its way down: a draft, but for the first of them."""

    token: int
    certainty: float = 1.0
    depth: int = 0
    gate: float = 0.0
    logits: Float | None = None  # at that depth, where they were asked for


class Pipeline:
    """The rows of one sequence that are on their way, under a KV rule by which rows wait.

    Between two steps each waits in the `SequenceState` behind the depth it has come to, so that whoever goes on there
    finds rows as a token that left early leaves them.
    """

    def __init__(
        self,
        state: SequenceState[Any],
        looping: Looping,
        drafting: Drafting,
        ends: Collection[int],
        gated: bool,
        last: int,
        slots: int,
    ) -> None:
        """
        Args:
            looping: says from which depth on drafts are made.
            ends: tokens behind which nothing is drafted.
            gated: whether the gate was trained to tell how likely a depth's token is full depth's.
            last: the depth at which tokens are read.
            slots: rows that a step takes at most.
        """
        self._state, self._drafting, self._ends = state, drafting, ends
        self.last, self._slots = last, slots
        self._draft_depth = looping.draft_depth
        self._gated = gated and looping.gate != "hazard"  # a hazard says that a state is good enough, no more
        self._rows: list[_Row] = []  # of the history's last token, and of drafts behind it
        self._draft: _Row | None = None  # enters with the next step

    @property
    def is_empty(self) -> bool:
        """Whether no row is on its way."""
        return not self._rows

    def begins(self) -> bool:
        """Whether the next token may go through the pipeline and should: no row waits that it would have to take along,
        and that was the faster way of late."""
        return self.is_free and self._drafting.pays(self.last)

    def took(self, drafts: bool, seconds: float) -> None:
        """A token took so long, with drafts or without."""
        self._drafting.took(self.last, drafts, seconds)

    @property
    def is_free(self) -> bool:
        """Whether no other row waits that rows on their way would have to take along."""
        return not any(len(waiting) for waiting in self._state.waiting[: self.last - 1])

    @property
    def width(self) -> int:
        """Parts of the next step."""
        return max(len(self._rows) + (self._draft is not None), 1)

    def forget(self) -> None:
        """Begin anew: the state holds none of the rows any more."""
        self._rows, self._draft = [], None

    def parts(self, token: int, others: int = 0) -> list[Part[Any]]:
        """The rows to run next, each through its next depth, the deepest first.

        Args:
            token: the history's last.
            others: rows of other sequences in the same step.
        """
        if not self._rows:
            self._draft = _Row(token)
        if self._draft is not None:
            self._rows.append(self._draft)
            self._draft = None
        going_on = sum(row.depth + 1 < self.last for row in self._rows)
        return [self._part(row, others + going_on) for row in self._rows]

    def _part(self, row: _Row, rows: int) -> Part[Any]:
        """`rows`: of the step behind this one, if nothing is drafted."""
        depth, state = row.depth + 1, self._state
        entering = np.array([row.token]) if depth == 1 else state.waiting[depth - 2].take(1)
        least = NEVER
        if depth == self.last:
            least = 0.0
        elif row is self._rows[-1] and depth >= self._draft_depth:
            least = self._drafting.cutoff(depth, self.last, rows) if self._gated else 0.0
        stayed = last_stayed(1, row.gate) if row.gate else None
        position = state.first_position(depth, 1)
        return Part(state.cache, depth, entering, position, np.array([least], np.float32), stayed=stayed)

    def take(
        self,
        done: Sequence[PartDone],
        history: Sequence[int],
        sampler: Sampler,
        drafts: Drafts,
        remaining: int,
        others: int = 0,
    ) -> Picked | None:
        """Take what a step returned; the token that follows `history`, where it led to one.

        Args:
            remaining: tokens that the reply may still have.
            others: rows of other sequences in a step.
        """
        for row, part in zip(self._rows, done, strict=True):
            row.depth, row.gate = row.depth + 1, float(part.gate[-1])
            row.logits = part.logits[-1] if len(part.logits) else None
            self._state.leave(row.depth, part.hidden)
        picked, first = None, self._rows[0]
        if first.depth == self.last:
            assert first.logits is not None
            token = sampler.pick(first.logits, history)
            picked = sampler.picked(token, self.last, first.gate, first.logits)
            history = [*history, token]
            del self._rows[0]
            self._judge(token, drafts)
        if self._rows and len(self._rows) < min(self._slots, remaining - (picked is not None)):
            self._propose(history, sampler, drafts, others)
        return picked

    def _judge(self, token: int, drafts: Drafts) -> None:
        """Drop the drafts where the first is another token than this one."""
        if not self._rows:
            return
        stood = self._rows[0].token == token
        self._drafting.judged(self._rows[0].certainty, stood)
        drafts.accepted += stood
        if not stood:
            self._state.rewind(self._state.length - len(self._rows))
            self._rows.clear()

    def _propose(self, history: Sequence[int], sampler: Sampler, drafts: Drafts, others: int) -> None:
        """Draft what follows the newest row, if that is likely enough to stand."""
        newest = self._rows[-1]
        if newest.logits is None:
            return
        token = sampler.pick(newest.logits, [*history, *(row.token for row in self._rows[1:])])
        certainty = newest.gate if self._gated else _probability(newest.logits, token)
        if not self._gated and certainty < self._drafting.cutoff(newest.depth, self.last, others + len(self._rows)):
            return
        if token not in self._ends:
            self._draft = _Row(token, certainty)
            drafts.drafted += 1


def _probability(logits: Float, token: int) -> float:
    return float(1 / np.exp(logits - logits[token]).sum())
