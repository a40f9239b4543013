"""`Engine`: many requests at once, each sequence at a depth of its own in one block step.

Continuous depth-wise batching (Relaxed Recursive Transformers, sections 2.4 and 3.8): the block is the same function at
every depth, so a step serves whatever each sequence needs next, and a sequence that ends makes room at the next step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Unpack

from rrt_edge.runtime import interfaces
from rrt_edge.runtime.bundle.kv_rule_names import RunRuleName
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.reply import Token
from rrt_edge.runtime.decoding.request import Request
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.errors import BadInputError, as_ours, from_outside, in_words
from rrt_edge.runtime.interfaces import Prompt, ReplyOptions, SamplingFields
from rrt_edge.runtime.loaded import Holder, insides
from rrt_edge.runtime.running.runner import Part, PartDone
from rrt_edge.runtime.system.names import says_meant
from rrt_edge.runtime.system.options import plain_number, shown

log = logging.getLogger(__name__)
KV_BUDGET = 1 << 30  # bytes
PROMPT_ROWS = 32  # prompt tokens a step takes along: bounds how long running replies wait for a new prompt
MOST_ENDED = 8  # requests whose keys and values are kept after their end


class Engine:
    """Runs requests together. Not for use by two threads at once.

    Requests by whose policy all tokens run the same depths bring a row for each depth (`Pipeline`), where drafts pay
    beside the others' rows. A reproducible model's requests take turns within a step.
    """

    @says_meant
    def __init__(
        self,
        model: Holder,
        *,
        kv_rule: RunRuleName | None = None,
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
        self._model = loaded = insides(model)
        self._rule = loaded.kv_rule(kv_rule)
        self.kv_budget_bytes, self.prompt_rows = kv_budget_bytes, min(prompt_rows, loaded.runner.most_rows)
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # the one served longest ago first
        self._ended: list[Request] = []  # their keys and values are kept while the budget has room for them
        self.steps = 0
        self._binding = loaded.runner.bind()
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"Engine(running: {len(self.running)}, waiting: {len(self.waiting)}, kv_rule={self.kv_rule!r})"

    @property
    def kv_rule(self) -> str:
        """The KV rule that its requests follow."""
        return self._rule.name

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> interfaces.Request:
        """Queue a prompt, as `Model.stream` takes it; `context_full` may be `error` or `truncate-left`.

        Raises:
            ContextFullError, BadInputError: as `Model.stream`; or the request alone is over the KV budget.
        """
        request = self.prepare(prompt, sampling, exit_policy, **options)
        self.enqueue(request)
        return request

    def enqueue(self, request: Request) -> None:
        """Queue what `prepare` made."""
        self.waiting.append(request)

    def prepare(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Request:
        """`submit` in two parts: check a request, which any thread may do, and `enqueue` it."""
        model = self._model
        asked = model.prepare(prompt, sampling, exit_policy, options)
        if asked.shifts:
            raise BadInputError("context-full shift: is for sessions; an engine takes error or truncate-left")
        runner, ids = model.runner, asked.ids
        tokens = len(ids) + min(asked.sampling.most_tokens(len(ids)), model.context - len(ids))
        kv_bytes = runner.kv_bytes(tokens, self._rule)
        if kv_bytes > self.kv_budget_bytes:
            raise BadInputError(
                f"the request may come to hold {kv_bytes} bytes of keys and values, over the budget of "
                f"{self.kv_budget_bytes}; shorten the prompt, lower max-tokens or raise the budget"
            )
        reply = model.reply(ids, asked.sampling, asked.policy, self._rule)
        state = SequenceState(runner, self._rule)
        return Request(next(self._numbers), reply, state, asked.policy, kv_bytes, model.reproducible)

    def cancel(self, request: interfaces.Request) -> None:
        """End a request; it gets no further token."""
        for requests in (self.waiting, self.running):
            for own in [own for own in requests if own is request]:
                requests.remove(own)
                own.finish_reason = "cancelled"

    def run(self) -> Iterator[tuple[interfaces.Request, Token]]:
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
        served, groups = self._parts(served)
        try:
            if self._model.reproducible:
                outcomes = [self._run_groups([group])[0] for group in groups]
            else:
                outcomes = self._run_groups(groups)
        except BaseException:
            for request in served:
                self.cancel(request)
            raise
        self.steps += 1
        self.running = [request for request in self.running if request not in served] + served
        tokens, interruption = [], None
        for request, outcome in zip(served, outcomes, strict=True):
            try:
                if isinstance(outcome, BaseException):
                    raise outcome
                for token in request.take(outcome):
                    tokens.append((request, token))
            except BaseException as error:  # of this request alone: its logits, sampler, grammar, detokenizer
                request.fail(error)
                interruption = error if from_outside(error) else interruption
            if request.finish_reason:
                self.running.remove(request)
                if request.error is None:
                    self._ended.append(request)
        if interruption is not None:
            raise interruption
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures and len(failures) == len(outcomes):
            failure = as_ours(failures[0])
            del served, groups, request, outcome, outcomes, failures  # with the error this call's locals live on
            raise failure
        return tokens

    def _parts(self, chosen: Sequence[Request]) -> tuple[list[Request], list[list[Part[Any]]]]:
        """Who is served, and the parts of each; who cannot say which rows it needs ends."""
        served: list[Request] = []
        groups: list[list[Part[Any]]] = []
        room, rows = self.prompt_rows, _rows(chosen, self.prompt_rows)
        for request, own in zip(chosen, rows, strict=True):
            prompt_rows = request.new_prompt_rows
            try:
                groups.append(request.parts(room, sum(rows) - own, len(chosen)))
            except BaseException as error:
                self._end(request, error)
                continue
            served.append(request)
            room -= min(prompt_rows, room)
        return served, groups

    def _run_groups(self, groups: Sequence[list[Part[Any]]]) -> list[list[PartDone] | BaseException]:
        """Run the parts of some requests in one step; where it fails as a whole, those of each request alone, so that
        only those fail whose fault it is."""
        parts = [part for group in groups for part in group]
        if not parts:
            return []
        lengths = [len(part.cache.positions[part.depth - 1]) for part in parts]
        started = time.perf_counter()
        try:
            done = iter(self._model.runner.step(self._binding, parts))
            if all(len(part.rows) == 1 for part in parts):
                self._model.drafting.stepped(len(parts), time.perf_counter() - started, len(groups))
            return [[next(done) for _ in group] for group in groups]
        except BaseException as error:
            if from_outside(error):
                raise
            if len(groups) == 1:
                return [error]
            failure = error
        log.warning("a step failed (%s); its %d requests run alone once", in_words(failure), len(groups))
        for part, length in zip(parts, lengths, strict=True):
            del part.cache.positions[part.depth - 1][length:]  # rows that came before the failure come again
        outcomes: list[list[PartDone] | BaseException] = []
        for group in groups:
            room = [part.cache.room(part.depth) for part in group]
            try:
                fits = all(rows <= most for rows, most in room)
                outcomes.append(list(self._model.runner.step(self._binding, group)) if fits else failure)
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
                request.begin([other.held for other in self.running[1:] + self._ended], self._model.pipeline)
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
        room, slots = self.prompt_rows, self._model.runner.slots
        for request in self.running:
            prompt_rows = request.new_prompt_rows
            if request.width > slots or (prompt_rows and not room):
                continue
            chosen.append(request)
            room -= min(prompt_rows, room)
            slots -= request.width
        return chosen


def _rows(chosen: Sequence[Request], prompt_rows: int) -> list[int]:
    """About how many rows each request brings, prompts with so many rows at most."""
    return [max(min(request.new_prompt_rows, prompt_rows), request.width) for request in chosen]
