"""`Engine`: many requests at once, each sequence at a depth of its own in one block step.

Continuous depth-wise batching (Relaxed Recursive Transformers, sections 2.4 and 3.8): the block is the same function at
every depth, so a step serves whatever each sequence needs next, and a sequence that ends makes room at the next step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.kv_rule_names import KVRuleName
from rrt_edge.runtime.decoding.decoder import MOST_WAITING
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.prefixes import Held, take_over
from rrt_edge.runtime.decoding.reply import Generation, Reply, Token
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError, as_ours, from_outside, in_words, let_go
from rrt_edge.runtime.loaded import Loaded, Prompt
from rrt_edge.runtime.running.hidden import Hidden, joined
from rrt_edge.runtime.running.runner import NEVER, Part, PartDone
from rrt_edge.runtime.system.options import plain_number, shown

log = logging.getLogger(__name__)
Float = NDArray[np.float32]
KV_BUDGET = 1 << 30  # bytes
PROMPT_ROWS = 32  # prompt tokens a step takes along: bounds how long running replies wait for a new prompt
MOST_ENDED = 8  # requests whose keys and values are kept after their end
PART_ROWS = MOST_WAITING + 1  # rows that wait are caught up in parts of so many


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
        self._block_rows = 0
        self._depth = 0  # where the rows in `_moving` stand; 0: none do
        self._moving: NDArray[np.int64] | Hidden = np.zeros(0, np.int64)
        self._exited = state.nothing  # states that give this depth keys and values only
        # such states, and rows that go on when those moving have been caught up
        self._held: tuple[Hidden, Hidden] | None = None
        self._catching_up = False
        self._thresholds = np.zeros(0, np.float32)
        self._chunk_start, self._chunk_full = 0, False  # of the prompt tokens under way
        self._replying = False
        self._now = policy  # for the token under way
        self._last = 0

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
        stats = self._reply.stats(self._block_rows)
        if stats is None:
            raise BadInputError(f"request {self.number}: no token has come yet")
        return Generation(self.text, tuple(self.tokens), self.finish_reason, stats)

    @property
    def held(self) -> Held:
        """The tokens that the request has run so far, for other prompts that begin alike."""
        read = len(self._prompt) - 1 - len(self._unread)
        moving = self._depth > 0
        return Held(self._reply.history, self._state, read, self._policy.depth, moving, self._reproducible)

    def begin(self, others: Iterable[Held]) -> None:
        """Take over what others have run of its prompt."""
        self._state, count = take_over(others, self._prompt, self._policy.depth, self._state)
        del self._unread[:count]

    @property
    def new_prompt_rows(self) -> int:
        """Prompt tokens it would take along if it were served now."""
        return len(self._unread) if self._depth == 0 else 0

    def part(self, prompt_room: int) -> Part[Any]:
        """The rows it needs run next; no more than `prompt_room` new prompt tokens."""
        if self._depth == 0:
            self._begin(prompt_room)
        state, rows = self._state, self._moving
        self._thresholds = np.full(len(rows), NEVER, np.float32)
        if self._replying and not self._catching_up:
            self._thresholds[-1] = 0 if self._depth == self._last else self._now.threshold
        position = state.first_position(self._depth, len(self._exited) + len(rows))
        return Part(state.cache, self._depth, rows, position, self._thresholds, self._exited)

    def take(self, done: PartDone) -> Token | None:
        """Take what a step returned; the token it led to, where it led to one."""
        if self._replying:
            self._block_rows += len(done.hidden)
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
        leaves = bool(done.gate[-1] >= self._thresholds[-1])
        if not leaves and self._depth < self._last:
            self._deeper(self._exited, done.hidden)
            return None
        depth, self._depth = self._depth, 0
        self._state.leave(depth, joined(self._exited, done.hidden))
        self._exited = self._state.nothing
        if not self._replying:
            self._state.chunks.add(self._chunk_start, self._state.length, self._chunk_full, depth)
            return None
        return self._answer(done.logits[-1], depth, float(done.gate[-1]))

    def _begin(self, prompt_room: int) -> None:
        """Take the next rows: of the prompt while there are any, then the token that came last."""
        self._depth = 1
        self._replying = not self._unread
        if self._replying:
            self._now = self._reply.policy
            self._moving = np.array(self._reply.history[-1:], np.int64)
        else:
            self._now = self._policy
            chunk = self._state.chunk
            rows = chunk if self._reproducible else prompt_room
            self._moving = np.array(self._unread[:rows], np.int64)
            del self._unread[:rows]
            self._chunk_start, self._chunk_full = self._state.length, len(self._moving) == chunk
        self._last = self._now.depth or self._state.loops

    def _answer(self, logits: Float, depth: int, gate: float) -> Token:
        reply = self._reply
        token = reply.take(reply.sampler.picked(reply.sampler.pick(logits, reply.history), depth, gate, logits))
        self.tokens.append(token)
        self.finish_reason = reply.finish_reason
        if not self.finish_reason and self._now.depth is None:
            self._bound_waiting(depth)
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


class Engine:
    """Runs requests together. Not for use by two threads at once.

    `lossless` requests run at full depth here, whose tokens are the same: drafts spend rows to save latency, and a
    batch has rows enough. A reproducible model's requests take turns within a step.
    """

    def __init__(
        self,
        model: Loaded,
        *,
        kv_rule: KVRuleName | None = None,
        kv_budget_bytes: int = KV_BUDGET,
        prompt_rows: int = PROMPT_ROWS,
    ) -> None:
        """
        Args:
            kv_rule: as for `Model.session`.
            kv_budget_bytes: keys and values that running requests may come to hold; others wait in order.
            prompt_rows: prompt tokens a step takes along.
        """
        for name, number in (("kv-budget", kv_budget_bytes), ("prompt-rows", prompt_rows)):
            if not 1 <= (plain_number(number, int) or 0) < 1 << 63:
                raise BadInputError(f"{name} {shown(number)}: must be a whole number, 1 or more")
        self.model = model
        self.kv_rule = model.kv_rule(kv_rule)
        self.kv_budget_bytes, self.prompt_rows = kv_budget_bytes, min(prompt_rows, model.runner.most_rows)
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # the one served longest ago first
        self._ended: list[Request] = []  # their keys and values are kept while the budget has room for them
        self.steps = 0
        self._binding = model.runner.bind()
        self._numbers = count(1)

    def submit(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy | None = None
    ) -> Request:
        """Queue a prompt (text, or token ids).

        Raises:
            ContextFullError, BadInputError: as `Model.stream`; or the request alone is over the KV budget.
        """
        request = self.prepare(prompt, sampling, exit_policy)
        self.enqueue(request)
        return request

    def enqueue(self, request: Request) -> None:
        """Queue what `prepare` made."""
        self.waiting.append(request)

    def prepare(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy | None = None
    ) -> Request:
        """`submit` in two parts: check a request, which any thread may do, and `enqueue` it."""
        model, sampling, policy = self.model, sampling or Sampling(), self.model.policy(exit_policy)
        ids = model.checked_prompt(prompt)
        room = model.context - len(ids)
        runner = model.runner
        kv_bytes = runner.kv_bytes(len(ids) + min(sampling.max_tokens, room))
        if kv_bytes > self.kv_budget_bytes:
            raise BadInputError(
                f"the request may come to hold {kv_bytes} bytes of keys and values, over the budget of "
                f"{self.kv_budget_bytes}; shorten the prompt, lower max-tokens or raise the budget"
            )
        reply = model.reply(ids, sampling, policy)
        state = SequenceState(runner, self.kv_rule)
        return Request(next(self._numbers), reply, state, policy, kv_bytes, model.reproducible)

    def cancel(self, request: Request) -> None:
        """End a request; it gets no further token."""
        for requests in (self.waiting, self.running):
            if request in requests:
                requests.remove(request)
                request.finish_reason = "cancelled"

    def run(self) -> Iterator[tuple[Request, Token]]:
        """Step until every request has ended, yielding tokens as they come; more may be submitted meanwhile."""
        while self.waiting or self.running:
            yield from self.step()

    def step(self) -> list[tuple[Request, Token]]:
        """Run one block step; returns the tokens it led to.

        Whatever the part of one request raises ends that request with its error, and the others take their tokens.

        Raises:
            RRTEdgeError: the step failed, and again for each request alone; all that were served have ended with it.
            KeyboardInterrupt, SystemExit: from outside; the requests that were under way at that moment have ended.
        """
        self._admit()
        served = self._choose()
        if not served:
            return []
        served, parts = self._parts(served)
        groups = [[part] for part in parts] if self.model.reproducible else [parts]
        try:
            outcomes = [outcome for group in groups for outcome in self._run_parts(group)]
        except BaseException:
            for request in served:
                self.cancel(request)
            raise
        self.steps += 1
        self.running = [request for request in self.running if request not in served] + served
        tokens, interruption = [], None
        for request, outcome in zip(served, outcomes, strict=True):
            token = None
            try:
                if isinstance(outcome, BaseException):
                    raise outcome
                token = request.take(outcome)
            except BaseException as error:  # of this request alone: its logits, sampler, grammar, detokenizer
                request.fail(error)
                interruption = error if from_outside(error) else interruption
            if token is not None:
                tokens.append((request, token))
            if request.finish_reason:
                self.running.remove(request)
                if request.error is None:
                    self._ended.append(request)
        if interruption is not None:
            raise interruption
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures and len(failures) == len(outcomes):
            failure = as_ours(failures[0])
            del served, parts, request, outcome, outcomes, failures  # with the error this call's locals live on
            raise failure
        return tokens

    def _parts(self, chosen: Sequence[Request]) -> tuple[list[Request], list[Part[Any]]]:
        """Who is served, and the rows of each; who cannot say which rows it needs ends."""
        served, parts, room = [], [], self.prompt_rows
        for request in chosen:
            prompt_rows = request.new_prompt_rows
            try:
                parts.append(request.part(room))
            except BaseException as error:
                self._end(request, error)
                continue
            served.append(request)
            room -= min(prompt_rows, room)
        return served, parts

    def _run_parts(self, parts: Sequence[Part[Any]]) -> list[PartDone | BaseException]:
        """Run a step; where it fails as a whole, each part alone, so that only those fail whose fault it is."""
        if not parts:
            return []
        lengths = [len(part.cache.positions[part.depth - 1]) for part in parts]
        try:
            return list(self.model.runner.step(self._binding, parts))
        except BaseException as error:
            if from_outside(error):
                raise
            if len(parts) == 1:
                return [error]
            failure = error
        log.warning("a step failed (%s); its %d requests run alone once", in_words(failure), len(parts))
        outcomes: list[PartDone | BaseException] = []
        for part, length in zip(parts, lengths, strict=True):
            del part.cache.positions[part.depth - 1][length:]  # rows that came before the failure come again
            rows, room = part.cache.room(part.depth)
            try:
                outcomes += [failure] if rows > room else self.model.runner.step(self._binding, [part])
            except BaseException as error:
                if from_outside(error):
                    raise
                outcomes.append(error)
        return outcomes

    def _end(self, request: Request, error: BaseException) -> None:
        """End a request that is running with an error of its own."""
        self.running.remove(request)
        request.fail(error)
        if from_outside(error):
            raise error

    def _admit(self) -> None:
        """Let requests in, in order, while their keys and values fit the budget."""
        kv_bytes = sum(request.kv_bytes for request in self.running)
        while self.waiting and kv_bytes + self.waiting[0].kv_bytes <= self.kv_budget_bytes:
            request = self.waiting.pop(0)
            self.running.insert(0, request)
            try:
                request.begin([other.held for other in self.running[1:] + self._ended])
            except BaseException as error:
                self._end(request, error)
                continue
            kv_bytes += request.kv_bytes
        del self._ended[:-MOST_ENDED]
        while self._ended and kv_bytes + sum(request.kv_bytes for request in self._ended) > self.kv_budget_bytes:
            del self._ended[0]

    def _choose(self) -> list[Request]:
        """Whom the next step serves: those served longest ago, prompts as far as there is room for their rows."""
        chosen: list[Request] = []
        room = self.prompt_rows
        for request in self.running:
            prompt_rows = request.new_prompt_rows
            if len(chosen) == self.model.runner.slots:
                break
            if prompt_rows and not room:
                continue
            chosen.append(request)
            room -= min(prompt_rows, room)
        return chosen
