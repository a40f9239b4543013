"""Full depth as a pipeline: one step runs a row at each depth, through weights that are read once for all of them.

While token t runs depth 2, the token that depth 1 says will follow it, its draft, runs depth 1 beside it; as long as
full depth agrees with the drafts, each step brings a token. Where it does not agree, the rows behind are dropped, and
what they had run was in vain. The tokens are those of full depth, whatever was drafted: a draft only decides which rows
are computed ahead of time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    finds rows as a token that left early leaves them. Each row stands at a lesser depth than the one before it.
    """

    def __init__(
        self,
        state: SequenceState[Any],
        drafting: Drafting,
        draft_depths: Collection[int],
        last: int,
        slots: int,
        ends: Collection[int],
        gated: bool,
    ) -> None:
        """
        Args:
            draft_depths: those whose tokens are drafts.
            last: the depth at which tokens are read.
            slots: rows that a step takes at most.
            ends: tokens behind which nothing is drafted.
            gated: whether the gate tells how likely a depth's token is full depth's.
        """
        self._state, self._drafting, self._draft_depths = state, drafting, draft_depths
        self.last, self._slots, self._ends, self._gated = last, slots, ends, gated
        self._rows: list[_Row] = []  # of the history's last token, and of drafts behind it
        self._draft: _Row | None = None  # enters with the next step
        self._cutoff = NEVER  # the least certainty of the draft that the step under way may lead to

    @property
    def is_empty(self) -> bool:
        """Whether no row is on its way."""
        return not self._rows

    @property
    def is_free(self) -> bool:
        """Whether no other row waits that rows on their way would have to take along."""
        return sum(len(waiting) for waiting in self._state.waiting[: self.last - 1]) == len(self._rows)

    @property
    def width(self) -> int:
        """Parts of the next step."""
        return max(len(self._rows) + (self._draft is not None), 1)

    def pays(self) -> bool:
        """Whether tokens come sooner with drafts than without, as far as was measured of late."""
        return self._drafting.pays(self.last)

    def took(self, drafts: bool, seconds: float) -> None:
        """A token took so long, with drafts or without."""
        self._drafting.took(self.last, drafts, seconds)

    def parts(self, token: int, others: int = 0, sequences: int = 1) -> list[Part[Any]]:
        """The rows to run next, each through its next depth, the deepest first.

        Args:
            token: the history's last.
            others: rows of other sequences in the same step.
            sequences: those in the step, this one among them.
        """
        if not self._rows:
            self._draft = _Row(token)
        if self._draft is not None:
            self._rows.append(self._draft)
            self._draft = None
        going_on = sum(row.depth + 1 < self.last for row in self._rows)
        return [self._part(row, others + going_on, sequences) for row in self._rows]

    def _part(self, row: _Row, rows: int, sequences: int) -> Part[Any]:
        """`rows`: of the step behind this one, if nothing is drafted."""
        depth, state = row.depth + 1, self._state
        entering = np.array([row.token]) if depth == 1 else state.waiting[depth - 2].take(1)
        least = NEVER
        if depth == self.last:
            least = 0.0
        elif row is self._rows[-1] and depth in self._draft_depths:
            self._cutoff = self._drafting.cutoff(rows, sequences)
            least = self._cutoff if self._gated or self._cutoff == NEVER else 0.0
        stayed = last_stayed(1, row.gate) if row.gate else None
        position = state.first_position(depth, 1)
        return Part(state.cache, depth, entering, position, np.array([least], np.float32), stayed=stayed)

    def take(
        self, done: Sequence[PartDone], history: Sequence[int], sampler: Sampler, drafts: Drafts, remaining: int
    ) -> Picked | None:
        """Take what a step returned; the token that follows `history`, where it led to one.

        Args:
            remaining: tokens that may follow.
        """
        for row, part in zip(self._rows, done, strict=True):
            row.depth, row.gate = row.depth + 1, float(part.gate[-1])
            row.logits = part.logits[-1] if len(part.logits) else None
            self._state.leave(row.depth, part.hidden)
        picked, first = None, self._rows[0]
        if first.depth == self.last:
            assert first.logits is not None
            token = sampler.pick(first.logits, history)
            if len(self._rows) > 1:
                token = self._drafting.verdict(token, self._rows[1].token)
            picked = sampler.picked(token, self.last, first.gate, first.logits)
            history, remaining = [*history, token], remaining - 1
            del self._rows[0]
            self._judge(token, drafts)
        if self._rows and len(self._rows) < min(self._slots, remaining):
            self._propose(history, sampler, drafts)
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

    def _propose(self, history: Sequence[int], sampler: Sampler, drafts: Drafts) -> None:
        """Draft what follows the newest row, if that is likely enough to stand."""
        newest = self._rows[-1]
        if newest.logits is None or not np.isfinite(newest.logits.max()):
            return
        token = sampler.pick(newest.logits, [*history, *(row.token for row in self._rows[1:])])
        certainty = newest.gate if self._gated else _probability(newest.logits, token)
        if certainty >= self._cutoff and token not in self._ends:
            self._draft = _Row(token, certainty)
            drafts.drafted += 1


def _probability(logits: Float, token: int) -> float:
    with np.errstate(over="ignore"):  # of a token that is far from likely: 1 / infinity
        return float(1 / np.exp(logits - logits[token]).sum())
