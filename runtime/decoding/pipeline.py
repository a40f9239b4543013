"""Full depth as a pipeline: one step runs a row at each depth, through weights that are read once for all of them.

While token t runs depth 2, the token that depth 1 says will follow it, its draft, runs depth 1 beside it; as long as
full depth agrees with the drafts, each step brings a token. Where it does not agree, the rows behind are dropped, and
what they had run was in vain. The tokens are those of full depth, whatever was drafted: a draft only decides which rows
are computed ahead of time.

Drafts come from the text as well, where it repeats itself. Nobody has to wait for those, so that several may run
together with the token that they follow, at the same depth, and one pass through all depths brings several tokens.

Where tokens may leave early, a row whose gate lets it leave is a draft that needs no verdict: its token is there at
once, and the row goes on beside the next ones, so that later tokens find its keys and values at every depth.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.drafting import Drafting, ReplyTimes
from rrt_edge.runtime.decoding.lookup import Guess
from rrt_edge.runtime.decoding.reply import Drafts
from rrt_edge.runtime.decoding.sampler import Picked, Sampler
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.running.runner import NEVER, Part, PartDone

Float = NDArray[np.float32]
MOST_TOGETHER = 8  # rows
HOPELESS = 0.25  # chance to stand below which no draft from the text is worth its row: it costs so much of a first one


class _Reading(NamedTuple):
    """What a row says at a depth where it may be read."""

    depth: int
    gate: float
    logits: Float


@dataclass(eq=False)
class _Row:
    """A token on its way down: a draft, but for the first of those that have no answer yet."""

    token: int
    chance: float = 1.0
    certainty: float | None = None  # of a draft that a lesser depth made
    depth: int = 0
    gate: float = 0.0
    logits: Float | None = None  # at that depth, where they were asked for
    readings: list[_Reading] = field(default_factory=list)  # of what follows, in order of depth
    answered: bool = False  # it left early: what follows it is known
    gates: list[float] = field(default_factory=list)  # of the depths so far, but the model's last
    watched: int | None = None  # what the depth that is watched says will follow it


class Pipeline:
    """The rows of one sequence that are on their way, under a KV rule by which rows wait.

    Between two steps each waits in the `SequenceState` behind the depth it has come to, so that whoever goes on there
    finds rows as a token that left early leaves them. Each row stands at a lesser depth than the one before it, but for
    those that run together.
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
            slots: rows at different depths that a step takes at most.
            ends: tokens behind which nothing is drafted.
            gated: whether the gate tells how likely a depth's token is full depth's.
            exits: depths at which tokens may leave early.
            watch: the depth whose tokens are told, if any.
        """
        self._watch = watch
        self._state, self._drafting, self._draft_depths = state, drafting, draft_depths
        self.last, self._slots, self._ends, self._gated, self._exits = last, slots, ends, gated, exits
        self._lookup = drafting.lookup()
        self._times = ReplyTimes()
        self._rows: list[_Row] = []  # of the history's last token, drafts behind it, and before it those that left
        self._entering: list[_Row] = []  # with the next step
        self._together = False  # all rows that are on their way run together, or will from the next step on
        self._moving: list[list[_Row]] = []  # the rows of each part of the step under way
        self._others, self._sequences = 0, 1  # of that step: rows of other sequences, and sequences
        self._began = 0.0
        self._cutoff = NEVER  # the least certainty of the draft that it may lead to
        self._rows_behind = 1  # of the step behind it, if nothing is drafted

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
        return 1 if self._together else len(self._rows) + (bool(self._entering) or self.is_empty)

    def pays(self) -> bool:
        """Whether tokens come sooner with drafts than without, as far as was measured of late."""
        return bool(self._draft_depths) and self._drafting.pays(self.last, bool(self._exits))

    def took(self, drafts: bool, seconds: float) -> None:
        """A token took so long, with drafts or without."""
        if not drafts and not self._exits:
            self._times.alone(seconds)
            self._drafting.stepped_together(1, seconds / self.last)
        if not drafts or self._times.counts:
            self._drafting.took(self.last, drafts, seconds, bool(self._exits))

    def forget(self) -> None:
        """Leave the rows that left early to whoever goes on."""
        self._rows, self._entering, self._together = [], [], False

    def enter(
        self, history: Sequence[int], drafts: Drafts, remaining: int, others: int = 0, sequences: int = 1
    ) -> bool:
        """Let the last token of a text enter with the next step, where none is on its way; whether drafts from the text
        enter together with it.

        Args:
            remaining: tokens that may follow.
            others: rows of other sequences in the same step.
            sequences: those in the step, this one among them.
        """
        if self.is_empty:
            guesses = self._guesses(history, [], remaining)
            copied = self._several(guesses, [], others, sequences)
            self._entering, self._together = [_Row(history[-1]), *copied], bool(copied)
            drafts.text_drafted += len(copied)
        return self._together

    def copied(
        self, history: Sequence[int], remaining: int, leaving: float, others: int = 0, sequences: int = 1
    ) -> list[int]:
        """Drafts from the text that had better run through depth 1 together with the last token of a text, where tokens
        may leave there; the arguments are `enter`'s.

        Args:
            leaving: the chance that a token does; behind one that goes deeper none counts.
        """
        if 1 not in self._exits:
            return []
        guesses = self._guesses(history, [], remaining)
        chances = [leaving * guess.chance for guess in guesses]
        count = self._drafting.together_once(chances, others, sequences)
        self._others, self._sequences, self._began = others, sequences, time.perf_counter()
        return [guess.token for guess in guesses[:count]]

    def ran(self, copied: int) -> None:
        """The step with so many drafts that were `copied` has been made."""
        rows = 1 + copied + self._others
        self._drafting.stepped_together(rows, time.perf_counter() - self._began, self._sequences)

    def verdict(self, token: int, draft: int | None) -> int:
        """`Drafting.verdict`, where there is a draft."""
        return token if draft is None else self._drafting.verdict(token, draft)

    def parts(self, others: int = 0, sequences: int = 1, threshold: float = NEVER) -> list[Part[Any]]:
        """The rows to run next, each through its next depth, the deepest first. Where they run together, those that are
        behind catch up first.

        Args:
            others: rows of other sequences in the same step.
            sequences: those in the step, this one among them.
            threshold: rows whose gate reaches it may leave.
        """
        self._rows += self._entering
        self._entering = []
        least = min(row.depth for row in self._rows)
        moving = [row for row in self._rows if row.depth == least or not self._together]
        self._moving = [list(rows) for _, rows in groupby(moving, lambda row: row.depth)]
        self._others, self._sequences, self._began = others, sequences, time.perf_counter()
        going_on = sum(row.depth + 1 < self.last for row in self._rows)
        return [self._part(rows, others + going_on, threshold) for rows in self._moving]

    def _part(self, moving: Sequence[_Row], rows: int, threshold: float) -> Part[Any]:
        """`rows`: of the step behind this one, if nothing is drafted."""
        depth, state, count = moving[0].depth + 1, self._state, len(moving)
        ids = np.array([row.token for row in moving], np.int64)
        entering = ids if depth == 1 else state.waiting[depth - 2].take(count)
        least = threshold if depth in self._exits else NEVER
        if moving[0].answered:
            least = NEVER
        elif depth == self.last:
            least = 0.0
        elif moving[-1] is self._rows[-1] and depth in self._draft_depths and not self._together:
            self._cutoff = self._drafting.cutoff(rows, self._sequences)
            self._rows_behind = rows
            least = min(least, self._cutoff if self._gated or self._cutoff == NEVER else 0.0)
        if depth == self._watch and not moving[0].answered:
            least = 0.0
        stayed = np.array([1 - row.gate for row in moving], np.float32)
        position = state.first_position(depth, count)
        return Part(state.cache, depth, entering, position, np.full(count, least, np.float32), stayed=stayed)

    def take(
        self,
        done: Sequence[PartDone],
        history: Sequence[int],
        sampler: Sampler,
        drafts: Drafts,
        remaining: int,
        threshold: float = NEVER,
    ) -> Picked | None:
        """Take what a step returned; the token that follows `history`, where it led to one. More may be `ready`.

        Args:
            remaining: tokens that may follow.
            threshold: rows whose gate reaches it may leave.
        """
        self._stepped(time.perf_counter() - self._began)
        for rows, part in zip(self._moving, done, strict=True):
            for index, row in enumerate(rows):
                row.depth, row.gate = row.depth + 1, float(part.gate[index])
                row.logits = part.logits[index] if len(part.logits) else None
                row.gates += [row.gate] if row.depth < self._state.loops else []
                if row.logits is not None and (row.depth == self.last or row.depth in self._exits):
                    row.readings.append(_Reading(row.depth, row.gate, row.logits))
            self._state.leave(rows[0].depth, part.hidden)
        self._rows = [row for row in self._rows if not (row.answered and row.depth == self.last)]
        self._look(history, sampler)
        picked = self.ready(history, sampler, drafts, threshold)
        if picked is not None:
            history, remaining = [*history, picked.token], remaining - 1
        if self._rows and not self._together and len(self._rows) < self._slots:
            self._propose(history, sampler, drafts, remaining)
        return picked

    def _stepped(self, seconds: float) -> None:
        """The step under way took so long, of which its rows have their share."""
        count = sum(len(rows) for rows in self._moving)
        rows = count + self._others
        self._times.add(seconds * count / rows)
        if self._together and count == len(self._rows):
            self._drafting.stepped_together(rows, seconds, self._sequences)

    def ready(
        self, history: Sequence[int], sampler: Sampler, drafts: Drafts, threshold: float = NEVER
    ) -> Picked | None:
        """The token that follows `history`, where the steps so far led to one; arguments as for `take`."""
        first = next((row for row in self._rows if not row.answered), None)
        if first is None:
            return None
        reading = next((each for each in first.readings if each.depth == self.last or each.gate >= threshold), None)
        if reading is None:
            return None
        behind = self._rows[self._rows.index(first) + 1 :]
        token = sampler.pick(reading.logits, history)
        if behind:
            token = self._drafting.verdict(token, behind[0].token)
        picked = sampler.picked(token, *reading, tuple(first.gates[: reading.depth]), first.watched)
        first.answered, first.logits, first.readings = True, None, []
        if first.depth == self.last:
            del self._rows[0]
        self._judge(token, behind, drafts)
        self._times.token(self._together)
        self._together = self._together and not self.is_empty
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
        draft, stood = behind[0], behind[0].token == token
        if draft.certainty is None:
            drafts.text_accepted += stood
        else:
            drafts.depth_accepted += stood
            self._drafting.judged(draft.certainty, stood)
        if not stood:
            self._state.rewind(self._state.length - len(behind))
            del self._rows[-len(behind) :]

    def _propose(self, history: Sequence[int], sampler: Sampler, drafts: Drafts, remaining: int) -> None:
        """Draft what follows the newest row, if that is likely enough to stand."""
        newest, open_rows = self._rows[-1], [row for row in self._rows if not row.answered]
        if newest.answered or newest.depth not in self._draft_depths or len(open_rows) >= remaining:
            return
        behind = open_rows[1:]
        guesses = self._guesses(history, behind, remaining)
        several = self._several(guesses, behind, self._others, self._sequences)
        if several:
            self._entering, self._together = several, True
            drafts.text_drafted += len(several)
            return
        best = self._of_depth(newest, [*history, *(row.token for row in behind)], sampler)
        for guess in guesses[:1]:
            least = self._drafting.cost(self._rows_behind, self._sequences) if best is None else best.chance
            if guess.chance > least:
                best = _Row(*guess)
        if best is not None:
            self._entering = [best]
            drafts.depth_drafted += best.certainty is not None
            drafts.text_drafted += best.certainty is None

    def _of_depth(self, newest: _Row, text: Sequence[int], sampler: Sampler) -> _Row | None:
        """The draft that the logits of the newest row make."""
        if newest.logits is None or not np.isfinite(newest.logits.max()):
            return None
        token = sampler.pick(newest.logits, text)
        certainty = newest.gate if self._gated else _probability(newest.logits, token)
        if certainty < self._cutoff or token in self._ends:
            return None
        return _Row(token, self._drafting.chance(certainty), certainty)

    def _several(self, guesses: Sequence[Guess], behind: Sequence[_Row], others: int, sequences: int) -> list[_Row]:
        """Drafts from the text that had better run together with the rows on their way, those `behind` the first."""
        seconds = self._times.seconds
        if not guesses or seconds is None or self._exits:
            return []
        chances = [*(row.chance for row in behind), *(guess.chance for guess in guesses)]
        count = self._drafting.together(chances, self.last, seconds, others, sequences) - len(behind)
        return [_Row(*guess) for guess in guesses[: max(count, 0)]]

    def _guesses(self, history: Sequence[int], behind: Sequence[_Row], remaining: int) -> list[Guess]:
        """What the text says may follow the rows on their way, before anything that ends it."""
        if self._lookup is None:
            return []
        self._lookup.follow(history)
        most = min(MOST_TOGETHER, remaining) - 1 - len(behind)
        guesses = self._lookup.guesses([row.token for row in behind], most, HOPELESS)
        end = next((index for index, guess in enumerate(guesses) if guess.token in self._ends), len(guesses))
        return guesses[:end]


def _probability(logits: Float, token: int) -> float:
    with np.errstate(over="ignore"):  # of a token that is far from likely: 1 / infinity
        return float(1 / np.exp(logits - logits[token]).sum())
