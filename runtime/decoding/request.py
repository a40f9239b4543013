"""`Request`: one prompt and its reply among many, and the rows that it needs run next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.decoder import MOST_WAITING
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.pipeline import Pipeline
from rrt_edge.runtime.decoding.prefixes import Held, take_over
from rrt_edge.runtime.decoding.reply import Generation, Reply, Token
from rrt_edge.runtime.decoding.sampler import Picked
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError, as_ours, let_go
from rrt_edge.runtime.running.hidden import Hidden, joined
from rrt_edge.runtime.running.runner import NEVER, Part, PartDone, last_stayed
from rrt_edge.runtime.system.options import shown

PART_ROWS = MOST_WAITING + 1  # rows that wait are caught up in parts of so many
MakePipeline = Callable[..., Pipeline | None]  # as `Loaded.pipeline`


class Request:
    """One prompt and its reply. `finish_reason` is empty until it ends: `stop`, `length`, `cancelled`, or `error` where
    its part of a step failed (`error` says why).
    """

    def __init__(
        self,
        number: int,
        reply: Reply,
        state: SequenceState[Any],
        policy: ExitPolicy,
        kv_bytes: int,
        reproducible: bool = False,
    ) -> None:
        self.number = number
        self.tokens: list[Token] = []
        self.finish_reason = ""
        self.error: RRTEdgeError | None = None
        self.kv_bytes = kv_bytes
        self._reply, self._state, self._policy, self._reproducible = reply, state, policy, reproducible
        self._prompt = list(reply.history)
        self._unread = reply.history[:-1]  # prompt tokens that no step has taken yet; the last is fed like a reply's
        self._block_rows = self._block_steps = 0
        self._pipeline: Pipeline | None = None
        self._piped = False  # whether the rows of the step under way are the pipeline's
        self._copied: list[int] = []  # drafts from the text behind the token under way, where tokens may leave early
        self._depth = 0  # where the rows in `_moving` stand; 0: none do
        self._moving: NDArray[np.int64] | Hidden = np.zeros(0, np.int64)
        self._exited = state.nothing  # states that give this depth keys and values only
        # such states, and rows that go on when those moving have been caught up
        self._held: tuple[Hidden, Hidden] | None = None
        self._catching_up = False
        self._gate = 0.0  # of the last row that moves, at the depth before
        self._leaves_at = NEVER  # the gate from which on it leaves where it stands
        self._gates: list[float] = []  # of the token under way, at the depths so far
        self._watched: int | None = None  # what the depth that is watched says in its place
        self._chunk_start, self._chunk_full = 0, False  # of the prompt tokens under way
        self._replying = False
        self._now = policy  # for the token under way
        self._last = 0

    def __repr__(self) -> str:
        state = f"finish_reason={self.finish_reason!r}" if self.finish_reason else "not ended"
        return f"Request({self.number}, tokens so far: {len(self.tokens)}, {state}, text={shown(self.text)})"

    def fail(self, error: BaseException) -> None:
        """End it with an error of its own."""
        self.error, self.finish_reason = as_ours(error), "error"
        let_go(error)

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def generation(self) -> Generation:
        """The reply so far.

        Raises:
            BadInputError: no token has come yet.
        """
        stats = self._reply.stats(self._block_rows, self._block_steps)
        if stats is None:
            raise BadInputError(f"request {self.number}: no token has come yet")
        return Generation(self.text, tuple(self.tokens), self.finish_reason, stats)

    @property
    def held(self) -> Held:
        """The tokens that the request has run so far, for other prompts that begin alike."""
        read = len(self._prompt) - 1 - len(self._unread)
        moving = self._depth > 0
        return Held(self._reply.history, self._state, read, self._policy.depth, moving, self._reproducible)

    def begin(self, others: Iterable[Held], make_pipeline: MakePipeline) -> None:
        """Take over what others have run of its prompt."""
        self._state, count = take_over(others, self._prompt, self._policy.depth, self._state)
        del self._unread[:count]
        self._pipeline = make_pipeline(self._state, self._policy, leaves=True, watch=self._reply.watch)

    @property
    def new_prompt_rows(self) -> int:
        """Prompt tokens it would take along if it were served now."""
        return len(self._unread) if self._depth == 0 else 0

    @property
    def width(self) -> int:
        """Parts it would bring if it were served now."""
        return 1 if self._pipeline is None or self._policy.may_leave else self._pipeline.width

    def parts(self, prompt_room: int, others: int = 0, sequences: int = 1) -> list[Part[Any]]:
        """The rows it needs run next, each part through one depth; no more than `prompt_room` new prompt tokens.

        Args:
            others: rows of other requests in the same step.
            sequences: requests in the step, this one among them.
        """
        pipeline, reply, self._piped, self._copied = self._pipeline, self._reply, False, []
        if pipeline is not None and self._depth == 0 and not self._unread:
            if self._policy.may_leave:
                self._copied = pipeline.copied(reply.history, reply.remaining, reply.leaving, others, sequences)
            elif pipeline.is_free:
                self._piped = True
                pipeline.enter(reply.history, reply.drafts, reply.remaining, others, sequences)
                return pipeline.parts(others, sequences)
        return [self._part(prompt_room)]

    def _part(self, prompt_room: int) -> Part[Any]:
        if self._depth == 0:
            self._begin(prompt_room)
        state, rows = self._state, self._moving
        least, self._leaves_at = np.full(len(rows), NEVER, np.float32), NEVER
        if self._replying and not self._catching_up:
            self._leaves_at = 0.0 if self._depth == self._last else self._now.threshold
            least[-1] = 0 if self._depth == self._reply.watch else self._leaves_at
            if self._copied:
                least[:] = 0
        position = state.first_position(self._depth, len(self._exited) + len(rows))
        moving = self._gate and not self._catching_up
        stayed = last_stayed(len(rows), self._gate) if moving else None
        return Part(state.cache, self._depth, rows, position, least, self._exited, stayed)

    def take(self, done: Sequence[PartDone]) -> Iterator[Token]:
        """Take what a step returned for its parts; the tokens it led to."""
        if self._piped or self._replying:
            self._block_rows += sum(len(part.hidden) for part in done)
            self._block_steps += 1
        if self._pipeline is not None and self._piped:
            reply = self._reply
            picked = self._pipeline.take(done, reply.history, reply.sampler, reply.drafts, reply.remaining)
            while picked is not None:
                yield self._answer(picked)
                if self.finish_reason:
                    return
                picked = self._pipeline.ready(reply.history, reply.sampler, reply.drafts)
            return
        if self._copied:
            yield from self._take_together(done[0])
            return
        token = self._take(done[0])
        if token is not None:
            yield token

    def _take_together(self, done: PartDone) -> Iterator[Token]:
        """The token that a step led to, and those behind it for which drafts from the text stand, up to one that goes
        deeper by itself."""
        pipeline, state, reply, copied = self._pipeline, self._state, self._reply, self._copied
        assert pipeline is not None
        pipeline.ran(len(copied))
        reply.drafts.text_drafted += len(copied)
        state.leave(1, done.hidden)
        self._depth = 0
        for index, draft in enumerate([*copied, None]):
            row, gate, logits = state.length - len(copied) + index, float(done.gate[index]), done.logits[index]
            self._now = reply.policy
            if done.gate[index] < np.float32(self._now.threshold):
                state.rewind(row)
                self._last, self._depth, self._gate, self._gates = self._now.depth or state.loops, 1, gate, [gate]
                self._watched = reply.sampler.pick(logits, reply.history) if reply.watch == 1 else None
                self._deeper(state.nothing, state.waiting[0].take_last())
                return
            picked = pipeline.verdict(reply.sampler.pick(logits, reply.history), draft)
            token = self._answer(reply.sampler.picked(picked, 1, gate, logits, (gate,)))
            stands = picked == draft
            reply.drafts.text_accepted += stands
            if not stands or self.finish_reason:
                state.rewind(row)
            yield token
            if not stands or self.finish_reason:
                break
        if not self.finish_reason:
            self._bound_waiting(1)

    def _take(self, done: PartDone) -> Token | None:
        if self._catching_up:
            self._state.leave(self._depth, joined(self._exited, done.hidden))
            self._exited = self._state.nothing
            self._catching_up = False
            self._depth -= 1
            if self._held is None:
                self._bound_waiting(self._depth, 0)
            else:
                self._deeper(*self._held)
            return None
        leaves = bool(done.gate[-1] >= np.float32(self._leaves_at))
        self._gates += [float(done.gate[-1])] if self._depth < self._state.loops else []
        if not leaves and self._depth < self._last:
            self._gate = float(done.gate[-1])
            if self._replying and self._depth == self._reply.watch:
                self._watched = self._reply.sampler.pick(done.logits[-1], self._reply.history)
            self._deeper(self._exited, done.hidden)
            return None
        depth, self._depth = self._depth, 0
        self._state.leave(depth, joined(self._exited, done.hidden))
        self._exited = self._state.nothing
        if not self._replying:
            self._state.chunks.add(self._chunk_start, self._state.length, self._chunk_full, depth)
            return None
        sampler, history, logits = self._reply.sampler, self._reply.history, done.logits[-1]
        picked = sampler.pick(logits, history)
        gates = tuple(self._gates)
        token = self._answer(sampler.picked(picked, depth, float(done.gate[-1]), logits, gates, self._watched))
        if not self.finish_reason and self._now.depth is None:
            self._bound_waiting(depth)
        return token

    def _begin(self, prompt_room: int) -> None:
        """Take the next rows: of the prompt while there are any, then the token that came last."""
        self._depth, self._gate, self._gates, self._watched = 1, 0.0, [], None
        self._replying = not self._unread
        if self._replying:
            self._now = self._reply.policy
            self._moving = np.array([*self._reply.history[-1:], *self._copied], np.int64)
        else:
            self._now = self._policy
            chunk = self._state.chunk
            rows = chunk if self._reproducible else prompt_room
            self._moving = np.array(self._unread[:rows], np.int64)
            del self._unread[:rows]
            self._chunk_start, self._chunk_full = self._state.length, len(self._moving) == chunk
        self._last = self._now.depth or self._state.loops

    def _answer(self, picked: Picked) -> Token:
        token = self._reply.take(picked)
        self.tokens.append(token)
        self.finish_reason = self._reply.finish_reason
        return token

    def _bound_waiting(self, depth: int, most: int = MOST_WAITING) -> None:
        """Catch up all rows that wait after a depth where they are more than `most`, then those after the next."""
        self._depth = 0
        if most == 0 and depth < self._state.loops and not len(self._state.waiting[depth - 1]):
            depth, most = depth + 1, MOST_WAITING
        if depth < self._state.loops and len(self._state.waiting[depth - 1]) > most:
            self._catch_up(depth, None)

    def _deeper(self, exited: Hidden, hidden: Hidden) -> None:
        """The rows [n, H] go to the next depth, with those that wait after this one."""
        waiting = self._state.waiting[self._depth - 1]
        if len(waiting) + len(exited) + len(hidden) > self._part_rows and len(waiting):
            self._catch_up(self._depth, (exited, hidden))
        else:
            self._exited, self._moving = self._state.deeper(self._depth, exited, hidden)
            self._held = None
            self._depth += 1

    @property
    def _part_rows(self) -> int:
        """Rows of a part at most; `Decoder` runs as many in a call."""
        return self._state.chunk if self._reproducible else PART_ROWS

    def _catch_up(self, depth: int, going_on: tuple[Hidden, Hidden] | None) -> None:
        """Rows that wait after a depth go first."""
        self._exited, self._moving = self._state.overdue(depth, self._part_rows)
        self._held = going_on
        self._catching_up = True
        self._depth = depth + 1
