"""Full depth as a pipeline: one step runs a row at each depth, through weights that are read once for all of them.

While token t runs depth 2, the token that depth 1 says will follow it, its draft, runs depth 1 beside it; as long as
full depth agrees with the drafts, each step brings a token. Where it does not agree, the rows behind are dropped, and
what they had run was in vain. The tokens are those of full depth, whatever was drafted: a draft only decides which rows
are computed ahead of time.

Where tokens may leave early, a row whose gate lets it leave is a draft that needs no verdict: its token is there at
once, and the row goes on beside the next ones, so that later tokens find its keys and values at every depth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.decoding.reply import Drafts
from rrt_edge.runtime.decoding.sampler import Picked, Sampler
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.running.runner import NEVER, Part, PartDone, last_stayed

Float = NDArray[np.float32]


@dataclass(eq=False)
class _Row:
    """A token on its way down: a draft, but for the first of those that have no answer yet."""

    token: int
    certainty: float = 1.0
    depth: int = 0
    gate: float = 0.0
    logits: Float | None = None  # at that depth, where they were asked for
    answered: bool = False  # it left early: what follows it is known
    gates: list[float] = field(default_factory=list)  # of the depths so far, but the model's last
    watched: int | None = None  # what the depth that is watched says will follow it


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
        exits: Collection[int] = (),
        watch: int | None = None,
    ) -> None:
        """
        Args:
            draft_depths: those whose tokens are drafts.
            last: the depth at which tokens are read.
            slots: rows that a step takes at most.
            ends: tokens behind which nothing is drafted.
            gated: whether the gate tells how likely a depth's token is full depth's.
            exits: depths at which tokens may leave early.
            watch: the depth whose tokens are told, if any.
        """
        self._watch = watch
        self._state, self._drafting, self._draft_depths = state, drafting, draft_depths
        self.last, self._slots, self._ends, self._gated, self._exits = last, slots, ends, gated, exits
        self._rows: list[_Row] = []  # of the history's last token, drafts behind it, and before it those that left
        self._draft: _Row | None = None  # enters with the next step
        self._cutoff = NEVER  # the least certainty of the draft that the step under way may lead to

    @property
    def is_empty(self) -> bool:
        """Whether no row is on its way but those that left early."""
        return all(row.answered for row in self._rows)

    @property
    def is_free(self) -> bool:
        """Whether no other row waits that rows on their way would have to take along."""
        return sum(len(waiting) for waiting in self._state.waiting[: self.last - 1]) == len(self._rows)

    @property
    def width(self) -> int:
        """Parts of the next step."""
        return len(self._rows) + (self._draft is not None or self.is_empty)

    def pays(self) -> bool:
        """Whether tokens come sooner with drafts than without, as far as was measured of late."""
        return self._drafting.pays(self.last, bool(self._exits))

    def took(self, drafts: bool, seconds: float) -> None:
        """A token took so long, with drafts or without."""
        self._drafting.took(self.last, drafts, seconds, bool(self._exits))

    def forget(self) -> None:
        """Leave the rows that left early to whoever goes on."""
        self._rows = []

    def parts(self, token: int, others: int = 0, sequences: int = 1, threshold: float = NEVER) -> list[Part[Any]]:
        """The rows to run next, each through its next depth, the deepest first.

        Args:
            token: the history's last.
            others: rows of other sequences in the same step.
            sequences: those in the step, this one among them.
            threshold: rows whose gate reaches it may leave.
        """
        if self.is_empty:
            self._draft = _Row(token)
        if self._draft is not None:
            self._rows.append(self._draft)
            self._draft = None
        going_on = sum(row.depth + 1 < self.last for row in self._rows)
        return [self._part(row, others + going_on, sequences, threshold) for row in self._rows]

    def _part(self, row: _Row, rows: int, sequences: int, threshold: float) -> Part[Any]:
        """`rows`: of the step behind this one, if nothing is drafted."""
        depth, state = row.depth + 1, self._state
        entering = np.array([row.token]) if depth == 1 else state.waiting[depth - 2].take(1)
        least = threshold if depth in self._exits else NEVER
        if row.answered:
            least = NEVER
        elif depth == self.last:
            least = 0.0
        elif row is self._rows[-1] and depth in self._draft_depths:
            self._cutoff = self._drafting.cutoff(rows, sequences)
            least = min(least, self._cutoff if self._gated or self._cutoff == NEVER else 0.0)
        if depth == self._watch and not row.answered:
            least = 0.0
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
        threshold: float = NEVER,
    ) -> Picked | None:
        """Take what a step returned; the token that follows `history`, where it led to one.

        Args:
            remaining: tokens that may follow.
            threshold: rows whose gate reaches it may leave.
        """
        for row, part in zip(self._rows, done, strict=True):
            row.depth, row.gate = row.depth + 1, float(part.gate[-1])
            row.logits = part.logits[-1] if len(part.logits) else None
            row.gates += [row.gate] if row.depth < self._state.loops else []
            self._state.leave(row.depth, part.hidden)
        self._rows = [row for row in self._rows if not (row.answered and row.depth == self.last)]
        self._look(history, sampler)
        picked = self.ready(history, sampler, drafts, threshold)
        if picked is not None:
            history, remaining = [*history, picked.token], remaining - 1
        if self._rows and len(self._rows) < self._slots:
            self._propose(history, sampler, drafts, remaining)
        return picked

    def ready(
        self, history: Sequence[int], sampler: Sampler, drafts: Drafts, threshold: float = NEVER
    ) -> Picked | None:
        """The token that follows `history`, where the steps so far led to one; arguments as for `take`."""
        first = next((row for row in self._rows if not row.answered), None)
        if first is None or first.logits is None:
            return None
        if first.depth < self.last and not (first.depth in self._exits and first.gate >= threshold):
            return None
        behind = self._rows[self._rows.index(first) + 1 :]
        token = sampler.pick(first.logits, history)
        if behind:
            token = self._drafting.verdict(token, behind[0].token)
        picked = sampler.picked(token, first.depth, first.gate, first.logits, tuple(first.gates), first.watched)
        first.answered, first.logits = True, None
        if first.depth == self.last:
            del self._rows[0]
        self._judge(token, behind, drafts)
        return picked

    def _look(self, history: Sequence[int], sampler: Sampler) -> None:
        """Note what the depth that is watched says will follow the row that has come to it."""
        open_rows = [row for row in self._rows if not row.answered]
        for at, row in enumerate(open_rows):
            if row.depth == self._watch and row.logits is not None:
                row.watched = sampler.pick(row.logits, [*history, *(draft.token for draft in open_rows[1 : at + 1])])

    def _judge(self, token: int, behind: Sequence[_Row], drafts: Drafts) -> None:
        """Drop the drafts `behind` where the first is another token than this one."""
        if not behind:
            return
        stood = behind[0].token == token
        self._drafting.judged(behind[0].certainty, stood)
        drafts.accepted += stood
        if not stood:
            self._state.rewind(self._state.length - len(behind))
            del self._rows[-len(behind) :]

    def _propose(self, history: Sequence[int], sampler: Sampler, drafts: Drafts, remaining: int) -> None:
        """Draft what follows the newest row, if that is likely enough to stand."""
        newest, open_rows = self._rows[-1], [row for row in self._rows if not row.answered]
        if newest.answered or newest.logits is None or len(open_rows) >= remaining:
            return
        if not np.isfinite(newest.logits.max()):
            return
        token = sampler.pick(newest.logits, [*history, *(row.token for row in open_rows[1:])])
        certainty = newest.gate if self._gated else _probability(newest.logits, token)
        if certainty >= self._cutoff and token not in self._ends:
            self._draft = _Row(token, certainty)
            drafts.drafted += 1


def _probability(logits: Float, token: int) -> float:
    with np.errstate(over="ignore"):  # of a token that is far from likely: 1 / infinity
        return float(1 / np.exp(logits - logits[token]).sum())
